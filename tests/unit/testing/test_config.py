"""What a VM under test is to be: images by name, disks that lose what is written to them, lans of a test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from vmm.config import parse_disk
from vmm.errors import ConfigError
from vmm.testing import images
from vmm.testing.config import Config


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PYVMM_IMAGES", raising=False)
    return tmp_path / "cache"


def make_image(directory: Path, **more: str) -> Path:
    directory.mkdir(parents=True)
    manifest = {"kernel": ["vmlinux", "bzImage"], "initrd": "initrd.cpio", "root": "root.img", "append": "quiet"}
    (directory / "manifest.json").write_text(json.dumps(manifest | more))
    for name in ("vmlinux", "initrd.cpio", "root.img"):
        (directory / name).write_bytes(b"x")
    return directory


def test_without_a_kernel_it_is_the_micro_image(cache: Path) -> None:
    directory = make_image(cache / "images" / "micro")
    config = Config(append="more").resolved()
    assert config.kernel == str(directory / "vmlinux")
    assert config.initrd == ""
    assert config.append == "quiet more"
    assert config.disks == (f"{directory}/root.img,snapshot=on",)


def test_a_kernel_with_modules_gets_their_initrd(cache: Path) -> None:
    directory = make_image(cache / "images" / "debian", kernel_release="6.1")
    assert Config(image="debian").resolved().initrd == str(directory / "initrd.cpio")


def test_images_are_looked_for_in_pyvmm_images_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_image(cache / "images" / "micro")
    own = make_image(tmp_path / "own" / "micro")
    monkeypatch.setenv("PYVMM_IMAGES", str(tmp_path / "own"))
    assert images.find("micro").kernel == str(own / "vmlinux")


def test_an_image_may_be_a_directory(cache: Path, tmp_path: Path) -> None:
    directory = make_image(tmp_path / "mine")
    assert images.find(str(directory)).root == str(directory / "root.img")


@pytest.mark.usefixtures("cache")
def test_a_missing_image_is_told_with_what_makes_it() -> None:
    with pytest.raises(images.NoImage, match="images/micro/build"):
        Config().resolved()


def test_a_directory_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="is none of an image"):
        images.find(f"{tmp_path}/")


def test_a_kernel_and_an_image_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="beside an image"):
        Config(kernel="vmlinux", image="micro").resolved()


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("a.img", "{here}/a.img,snapshot=on"),
        ("a.img,serial=x", "{here}/a.img,snapshot=on,serial=x"),
        ("a.img,readonly", "{here}/a.img,readonly"),
        ("a.img,snapshot=on", "{here}/a.img,snapshot=on"),
        ("overlay=work.cow,base=a.img", "overlay={here}/work.cow,base=a.img"),
        ("b,,c.img,readonly", "{here}/b,,c.img,readonly"),
    ],
)
def test_what_is_written_to_an_image_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, used: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.img", "b,c.img"):
        (tmp_path / name).touch()
    assert Config(kernel="k", disks=(given,)).resolved().disks == (used.format(here=tmp_path),)


def test_a_size_is_an_empty_disk_that_all_share(cache: Path) -> None:
    first, second = Config(kernel="k", disks=("64M", "64M")).resolved().disks
    assert first == second == f"{cache}/testing/empty-{64 << 20}.img,snapshot=on"
    found = os.stat(first.partition(",")[0])
    assert (found.st_size, found.st_blocks) == (64 << 20, 0)


def test_commas_in_the_cache_s_path_are_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "a,b"))
    make_image(tmp_path / "a,b" / "images" / "micro")
    root, empty = (parse_disk(disk).path for disk in Config(disks=("16M",)).resolved().disks)
    assert os.path.samefile(root, tmp_path / "a,b" / "images" / "micro" / "root.img")
    assert os.path.dirname(empty) == str(tmp_path / "a,b" / "testing")


def test_a_disk_that_is_not_there_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"no such image[\s\S]*64M"):
        Config(kernel="k", disks=("no.img",)).resolved()


def test_lans_are_renamed_and_other_networks_are_not() -> None:
    config = Config(nets=("lan=lab,name=web", "user", "bridge=br0")).with_lans("-7")
    assert config.nets == ("lan=lab-7,name=web", "user", "bridge=br0")


def test_what_a_guest_is_called_makes_no_other_snapshot() -> None:
    assert Config(nets=("lan=lab,name=web,vlan=5", "user")).nameless().nets == ("lan=lab,vlan=5", "user")


def test_resolving_twice_changes_nothing(cache: Path) -> None:
    make_image(cache / "images" / "micro")
    config = Config(disks=("16M",)).resolved()
    assert config.resolved() == config


def test_the_command_line() -> None:
    config = Config(kernel="/k", disks=("/a", "/b"), nets=("user",), cpus=2, options=("--engine", "python"))
    assert " ".join(config.arguments()) == (
        "--kernel /k --append  --cpus 2 --memory 256M --transport mmio --disk /a --disk /b --net user --engine python"
    )
