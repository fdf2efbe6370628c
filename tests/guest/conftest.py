"""Guests for the tests in this directory. A boot is dear: what does not disturb the others shares one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import required
from tests.fakes.host import public_directory
from tests.guest.linux import MIB, Image, LinuxGuest, make_disk
from vmm.cache import cache_directory

Start = Callable[..., LinuxGuest]


def _image(name: str) -> Image:
    directory = os.path.realpath(os.path.join(cache_directory(), "images", name))
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


@pytest.fixture(scope="module")
def user_directory() -> Iterator[str]:
    """One of an ordinary user's own."""
    with public_directory() as made:
        os.chown(made, 65534, 65534)
        yield made


@pytest.fixture(scope="module")
def user_disk(user_directory: str) -> str:
    """What guests of an ordinary user send each other, as a disk of 20 MiB."""
    return make_disk(os.path.join(user_directory, "data.img"), 20 * MIB)


@pytest.fixture(scope="session")
def guest(micro: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LinuxGuest]:
    """A guest with two CPUs that everybody shares: leave it as you found it, at its prompt."""
    root = micro.copy_root(os.path.join(tmp_path_factory.mktemp("shared"), "root.img"))
    machine = LinuxGuest(
        "--kernel", micro.kernel(), "--cpus", "2", "--memory", "256M", "--append", "quiet", "--disk", root
    )
    try:
        machine.wait_for_prompt()
        yield machine
    finally:
        machine.close()
