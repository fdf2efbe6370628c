"""Guests for the tests in this directory. A boot is dear: what does not disturb the others shares one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import required
from tests.guest.linux import Image, LinuxGuest, make_disk

MIB = 1 << 20
SCRATCH_BYTES = 64 * MIB
LARGE_BYTES = 256 * MIB

Start = Callable[..., LinuxGuest]


def _image(name: str) -> Image:
    cached = os.environ.get("PYVMM_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pyvmm"
    )
    directory = os.path.realpath(os.path.join(cached, "images", name))
    if not os.path.exists(os.path.join(directory, "manifest.json")):
        reason = f"no {directory}: build it with images/{name}/build"
        (pytest.fail if "guest" in required() else pytest.skip)(reason)
    return Image(directory)


@pytest.fixture(scope="session")
def micro() -> Image:
    """The small image."""
    return _image("micro")


@pytest.fixture(scope="session")
def debian() -> Image:
    """Debian's own kernel."""
    return _image("debian")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts guests that end with the test at the latest."""
    guests: list[LinuxGuest] = []

    def run(*arguments: str, **options: tuple[str, ...]) -> LinuxGuest:
        guests.append(LinuxGuest(*arguments, **options))
        return guests[-1]

    yield run
    for guest in guests:
        guest.close()


@pytest.fixture
def root(micro: Image, tmp_path: os.PathLike[str]) -> str:
    """A root disk of the test's own."""
    return micro.copy_root(os.path.join(tmp_path, "root.img"))


@pytest.fixture(scope="session")
def disks(micro: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The disks of `guest`, by what the guest calls them."""
    directory = str(tmp_path_factory.mktemp("disks"))
    paths = {name: os.path.join(directory, f"{name}.img") for name in ("vda", "vdb", "vdc")}
    micro.copy_root(paths["vda"])
    make_disk(paths["vdb"], LARGE_BYTES)
    with open(paths["vdc"], "wb") as file:
        file.truncate(LARGE_BYTES)
    yield paths
    for path in paths.values():
        os.unlink(path)


@pytest.fixture(scope="session")
def guest(micro: Image, disks: dict[str, str]) -> Iterator[LinuxGuest]:
    """A guest with two CPUs and three disks that everybody shares: leave it as you found it, at its prompt."""
    machine = LinuxGuest(
        "--kernel", micro.kernel(), "--cpus", "2", "--memory", "256M", "--append", "quiet",
        "--disk", disks["vda"], "--disk", f"{disks['vdb']},readonly", "--disk", f"{disks['vdc']},serial=scratch",
    )  # fmt: skip
    try:
        machine.wait_for_prompt()
        yield machine
    finally:
        machine.close()
