"""The guests' busybox: where its source comes from, its configuration and its artefact."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from images.recipe import busybox, debian
from images.recipe.build import Build
from images.recipe.debian import Package, SourcePackage
from images.recipe.errors import RecipeError
from images.recipe.progress import Progress

FAKE_APT_GET = """#!/bin/sh
case "$*" in
indextargets*) cat "$TARGETS" ;;
*" update "*) cp "$2" "$SEEN/apt.conf" ;;
*" source "*) echo "$*" >>"$SEEN/source"; echo x >demo_1-1.dsc ;;
esac
"""
PATCH = "--- a/file\n+++ b/file\n@@ -1 +1 @@\n-upstream\n+debian\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with what apt has packages from (`targets`), and what it was asked for."""
    directory = tmp_path / "apt"
    directory.mkdir()
    program = directory / "apt-get"
    program.write_text(FAKE_APT_GET)
    program.chmod(0o755)
    targets = "http://deb.example/debian/ bookworm\ncdrom:[Debian 12]/ bookworm\nmirror+file:/m/ bookworm-security\n"
    (directory / "targets").write_text(2 * targets)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    monkeypatch.setenv("TARGETS", str(directory / "targets"))
    monkeypatch.setenv("SEEN", str(directory))
    return directory


def test_a_package_knows_the_version_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"Version": "1:2-3+b1", "Size": "1", "Filename": "pool/x.deb", "Source": "demo (1:2-3)"}
    monkeypatch.setattr(debian, "_show", lambda _name: shown)
    assert Package("demo-static").source == SourcePackage("demo", "1:2-3")
    del shown["Source"]
    assert Package("demo").source == SourcePackage("demo", "1:2-3+b1")


def test_a_source_is_fetched_once_with_lists_of_its_own(apt: Path, cache: Path, build: Build) -> None:
    directory = SourcePackage("demo", "1:1-1").fetch(build)
    assert directory == str(cache / "packages" / "demo_1-1")
    assert os.listdir(directory) == ["demo_1-1.dsc"]
    assert SourcePackage("demo", "1:1-1").fetch(build) == directory
    (asked,) = (apt / "source").read_text().splitlines()
    assert asked.endswith("source --download-only demo=1:1-1")
    private = Path(build.work, "apt")
    options = (apt / "apt.conf").read_text()
    assert f'Dir::State::Lists "{private}/lists";' in options
    assert f'Dir::Etc::SourceList "{private}/sources.list";' in options
    assert 'Dir::Etc::SourceParts "/dev/null";' in options
    archives = [line.split("] ")[1] for line in (private / "sources.list").read_text().splitlines()]
    assert archives == ["http://deb.example/debian/ bookworm main", "mirror+file:/m/ bookworm-security main"]


def test_without_debian_among_the_sources_of_apt_there_is_no_source(apt: Path, build: Build) -> None:
    (apt / "targets").write_text("")
    with pytest.raises(RecipeError, match="Origin: Debian"):
        SourcePackage("demo", "1-1").fetch(build)


@pytest.mark.skipif(not shutil.which("patch"), reason="needs patch: apt-get install patch")
def test_a_source_is_unpacked_with_the_patches_of_debian(tmp_path: Path, cache: Path, build: Build) -> None:
    files = {
        "demo_1.orig.tar.gz": {"demo-1/file": "upstream\n"},
        "demo_1-1.debian.tar.xz": {"debian/patches/series": "# why\nits.patch\n", "debian/patches/its.patch": PATCH},
    }
    fetched = cache / "packages" / "demo_1-1"
    fetched.mkdir(parents=True)
    for archive, members in files.items():
        with tarfile.open(fetched / archive, f"w:{archive[-2:]}") as opened:  # type: ignore[call-overload]
            for name, text in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(text)
                opened.addfile(member, io.BytesIO(text.encode()))
    SourcePackage("demo", "1-1").extract(str(tmp_path / "tree"), build)
    assert (tmp_path / "tree" / "file").read_text() == "debian\n"


def test_the_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RecipeError, match=r"musl-gcc[^$]*fix: .* musl-tools"):
        debian.check_tools(busybox.TOOLS)


def test_the_configuration_is_that_of_debian_but_for_the_fragment(tmp_path: Path, build: Build) -> None:
    static = tmp_path / busybox.DEBIAN_CONFIG
    static.parent.mkdir(parents=True)
    static.write_text("CONFIG_STATIC=y\nCONFIG_EXTRA_COMPAT=y\n# CONFIG_PIE is not set\n")
    busybox.configure(str(tmp_path), ["true"], build)
    written = (tmp_path / ".config").read_text().splitlines()
    assert written[:3] == ["CONFIG_STATIC=y", "# CONFIG_EXTRA_COMPAT is not set", "# CONFIG_PIE is not set"]
    with pytest.raises(RecipeError) as raised:
        busybox.configure(str(tmp_path), ["sh", "-c", "sed -i /STATIC/d .config"], build)
    assert "options of busybox.config" in str(raised.value)
    assert "CONFIG_STATIC: wanted y, is n" in str(raised.value)


def test_busybox_is_built_once_and_again_for_another_libc(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Known:
        source = SourcePackage("busybox", "1")

    built = []

    def make(_self: busybox.Busybox, build: Build) -> dict[str, str]:
        built.append(build)
        return {}

    libc = tmp_path / "libc.a"
    libc.write_text("one")
    monkeypatch.setattr(busybox, "Package", lambda _name: Known)
    monkeypatch.setattr(busybox, "LIBC", str(libc))
    monkeypatch.setattr(busybox.Busybox, "_build", make)
    directory = busybox.Busybox().ensure(progress)
    assert busybox.Busybox().ensure(progress) == directory
    assert len(built) == 1
    libc.write_text("two")
    assert busybox.Busybox().ensure(progress) != directory
    assert len(built) == 2
