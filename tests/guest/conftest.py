"""Guests for the tests in this directory. A boot is dear: what is not about booting goes on from a snapshot of one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from tests.conftest import required
from tests.fakes.host import public_directory
from tests.guest.booted import Booted, boot_large, boot_small, make_data
from tests.guest.linux import Image, LinuxGuest
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
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What guests send each other."""
    return make_data(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def user_directory() -> Iterator[str]:
    """One of an ordinary user's own."""
    with public_directory() as made:
        os.chown(made, 65534, 65534)
        yield made


@pytest.fixture(scope="module")
def user_disk(user_directory: str) -> str:
    """What guests of an ordinary user send each other."""
    return make_data(user_directory)


@pytest.fixture(scope="session")
def run_of_tests(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A directory of all processes of this run."""
    own = tmp_path_factory.getbasetemp()
    return str(own.parent if "PYTEST_XDIST_WORKER" in os.environ else own)


@pytest.fixture(scope="session")
def small(micro: Image, run_of_tests: str) -> Booted:
    """As `boot_small`."""
    return boot_small(micro, run_of_tests)


@pytest.fixture(scope="session")
def large(micro: Image, run_of_tests: str) -> Booted:
    """As `boot_large`."""
    return boot_large(micro, run_of_tests)


@pytest.fixture(scope="module")
def guest(large: Booted) -> Iterator[LinuxGuest]:
    """One with two CPUs that the tests of a file share: leave it as you found it, at its prompt."""
    with closing(large.go_on()) as machine:
        yield machine
