"""The image recipes' own parts: archive, file system, configuration check, cache."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from images.recipe import busybox, debian, guest, kernel
from images.recipe.build import Build
from images.recipe.cache import Artefact
from images.recipe.cpio import write_cpio
from images.recipe.errors import RecipeError
from images.recipe.ext4 import write_ext4
from images.recipe.kconfig import check_config, parse_config, read_config
from images.recipe.modules import ModuleDirectory, unsigned
from images.recipe.progress import Progress
from images.recipe.tree import Tree

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


@pytest.fixture
def tree() -> Tree:
    tree = Tree()
    tree.file("sbin/init", b"\x7fELF" * 1000, 0o755)
    tree.symlink("bin/sh", "busybox")
    tree.directory("tmp", 0o1777)
    tree.character_device("dev/console", 5, 1)
    return tree


def parse_newc(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Name -> mode, data, device numbers, as the kernel's init/initramfs.c walks an archive."""
    members: dict[str, tuple[int, bytes, tuple[int, int]]] = {}
    offset = 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        mode, size, device, name_size = fields[1], fields[6], (fields[9], fields[10]), fields[11]
        name = archive[offset + 110 : offset + 110 + name_size]
        assert name.endswith(b"\0")
        data = (offset + 110 + name_size + 3) & ~3
        offset = (data + size + 3) & ~3
        if name == b"TRAILER!!!\0":
            return members
        members[name[:-1].decode()] = (mode, archive[data : data + size], device)


def test_cpio_holds_the_tree(tree: Tree) -> None:
    file = io.BytesIO()
    write_cpio(tree, file)
    members = parse_newc(file.getvalue())
    assert members["sbin/init"] == (stat.S_IFREG | 0o755, b"\x7fELF" * 1000, (0, 0))
    assert members["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox", (0, 0))
    assert members["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    names = list(members)
    assert all(names.index(os.path.dirname(name)) < names.index(name) for name in names if "/" in name)


@pytest.mark.skipif(not shutil.which("mke2fs", path=PATH), reason="needs e2fsprogs: apt-get install e2fsprogs")
def test_ext4_is_clean_owned_by_root_and_reproducible(tree: Tree, tmp_path: Path, build: Build) -> None:
    images = [tmp_path / "one.img", tmp_path / "two.img"]
    for image in images:
        write_ext4(tree, str(image), 16 << 20, build)
    assert images[0].read_bytes() == images[1].read_bytes()
    environment = {**os.environ, "PATH": PATH}
    subprocess.run(["e2fsck", "-fn", images[0]], check=True, capture_output=True, env=environment)

    def debugfs(request: str) -> str:
        command = ["debugfs", "-R", request, str(images[0])]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout

    found = debugfs("stat /sbin/init")
    assert "Mode:  0755" in found
    assert "User:     0   Group:     0" in found
    assert "Size: 4000" in found
    assert 'dest: "busybox"' in debugfs("stat /bin/sh")


def test_config_check_names_every_option_that_came_out_wrong() -> None:
    wanted = parse_config("# about A\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=8\n")
    check_config(wanted, {"CONFIG_A": "y", "CONFIG_C": "8", "CONFIG_D": "y"}, "the.config")
    with pytest.raises(RecipeError) as raised:
        check_config(wanted, {"CONFIG_B": "y", "CONFIG_C": "8"}, "the.config")
    assert "options of the.config" in str(raised.value)
    assert "CONFIG_A: wanted y, is n" in str(raised.value)
    assert "CONFIG_B: wanted n, is y" in str(raised.value)
    assert "CONFIG_C" not in str(raised.value)


def test_the_fragment_keeps_what_the_tests_rely_on() -> None:
    fragment = read_config(kernel.FRAGMENT)
    assert fragment["CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES"] == "n"
    assert fragment["CONFIG_PVH"] == fragment["CONFIG_ACPI"] == fragment["CONFIG_RANDOMIZE_BASE"] == "y"


def test_modules_lose_their_signatures() -> None:
    signature = b"signature" * 20
    info = b"\0\0\2\0\0\0\0\0" + len(signature).to_bytes(4, "big")
    assert unsigned(b"module" + signature + info + b"~Module signature appended~\n") == b"module"
    assert unsigned(b"module") == b"module"


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    def module(path: str, depends: str) -> None:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"\x7fELF\0alias=x\0depends=" + depends.encode() + b"\0intree=Y\0")

    module("net/virtio_net.ko", "virtio,net_failover")
    module("net/net_failover.ko", "failover")
    module("core/failover.ko", "")
    module("core/virtio.ko", "virtio_ring")
    module("core/virtio_ring.ko", "")
    module("rng/virtio-rng.ko", "virtio")
    directory = ModuleDirectory(str(tmp_path))
    assert list(directory.with_dependencies(("virtio_net", "virtio_rng"))) == [
        *("virtio_ring.ko", "virtio.ko", "failover.ko", "net_failover.ko", "virtio_net.ko", "virtio-rng.ko")
    ]
    with pytest.raises(RecipeError, match="no module virtio_gpu"):
        directory.with_dependencies(("virtio_gpu",))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(build: Build, text: str) -> dict[str, str]:
    Path(build.out, "file").write_text(text)
    return {"append": "quiet"}


def test_artefact_is_built_once_and_again_for_other_inputs(cache: Path, progress: Progress) -> None:
    runs = []

    def make(build: Build) -> dict[str, str]:
        runs.append(build)
        return write(build, "data")

    first = Artefact("demo", {"version": 1})
    assert not first.built
    directory = first.ensure(progress, make)
    assert Artefact("demo", {"version": 1}).ensure(progress, make) == directory
    assert len(runs) == 1
    other = Artefact("demo", {"version": 2}).ensure(progress, make)
    assert len(runs) == 2
    assert other != directory
    assert os.path.realpath(cache / "images" / "demo") == other
    manifest = json.loads(Path(other, "manifest.json").read_text())
    assert manifest["append"] == "quiet"
    assert manifest["inputs"] == {"version": 2}
    assert set(manifest["sha256"]) == {"file"}
    assert not Path(runs[0].work).exists()


def test_interrupted_build_leaves_no_artefact_and_goes_on(cache: Path, progress: Progress) -> None:
    def interrupted(build: Build) -> dict[str, str]:
        Path(build.work, "half").write_text("done")
        raise KeyboardInterrupt

    artefact = Artefact("demo", {})
    with pytest.raises(KeyboardInterrupt):
        artefact.ensure(progress, interrupted)
    assert not artefact.built

    def resumed(build: Build) -> dict[str, str]:
        return write(build, Path(build.work, "half").read_text())

    assert Path(artefact.ensure(progress, resumed), "file").read_text() == "done"


def test_two_at_once_build_once(cache: Path) -> None:
    program = """
import sys, time
from images.recipe.cache import Artefact
from images.recipe.progress import Progress
def make(build):
    print("building")
    time.sleep(0.5)
    open(build.out + "/file", "w").close()
    return {}
Artefact("demo", {}).ensure(Progress("test"), make)
"""
    root = str(Path(__file__).parents[3])
    runs = [
        subprocess.Popen([sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    results = [run.communicate(timeout=30) for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sorted(out for out, _ in results) == [b"", b"building\n"]
    assert any(b"waiting" in err for _, err in results)


def test_failed_command_shows_its_last_lines(build: Build) -> None:
    with pytest.raises(RecipeError) as raised:
        build.run(["sh", "-c", "echo first; echo the reason >&2; exit 3"])
    assert "status 3" in str(raised.value)
    assert "the reason" in str(raised.value)


def test_missing_tool_is_named_with_its_package() -> None:
    with pytest.raises(RecipeError, match=r"no-such-tool\n  fix: sudo apt-get install .* some-package$"):
        debian.check_tools({"sh": "dash", "no-such-tool": "some-package"})


def test_every_tool_is_in_the_package_list() -> None:
    listed = Path(kernel.__file__).parents[1].joinpath("packages.txt").read_text().split("\n")
    assert set((kernel.TOOLS | busybox.TOOLS | guest.TOOLS).values()) <= set(listed)


def test_progress_prints_a_line_per_stage_when_not_on_a_terminal() -> None:
    stream = io.StringIO()
    progress = Progress("images/demo", stream)
    with progress.stage("build"):
        progress.update("1/2")
    assert stream.getvalue() == "images/demo: build: done  0:00\n"
