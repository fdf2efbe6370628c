"""What every test runs under: its prerequisites, asked for once, and a check that it leaves nothing behind."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec

import pytest

from vmm.cache import cache_directory

#: Devices of pyvmm's own making.
LINK_PREFIXES = ("pyvmm", "vmtap")
#: How long a thread or a process that was told to end may take.
GRACE_S = 2.0

_CLONE_NEWNET = 0x4000_0000


@cache
def missing_kvm() -> str | None:
    """Why there is no KVM, or None."""
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return None


@cache
def missing_guest() -> str | None:
    """Why no guest can be booted, or None."""
    manifest = os.path.join(cache_directory(), "images", "micro", "manifest.json")
    if not os.path.exists(manifest):
        return f"no {manifest}: build it with images/micro/build"
    return missing_kvm()


@cache
def missing_net() -> str | None:
    """Why no network namespace with a bridge can be made, or None. Tried in a child, whose namespace goes with it."""
    for program in ("nft", "dnsmasq", "busybox", "passt", "sudo"):
        if shutil.which(program) is None:
            return f"{program}: not installed (packages nftables, dnsmasq-base, busybox, passt, sudo)"
    try:
        tried = subprocess.run(
            ["unshare", "--net", "ip", "link", "add", "br0", "type", "bridge"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        return f"{error.filename}: not installed (packages util-linux, iproute2)"
    return f"no CAP_NET_ADMIN: {tried.stderr.strip()}" if tried.returncode else None


def missing_native() -> str | None:
    """Why nothing native can be tested, or None."""
    return None if find_spec("vmm.native._engine") else "the native engine is not built: pip install -e ."


@cache
def missing_root() -> str | None:
    """Why a test cannot run something as another user or with a /dev of its own, or None."""
    return None if os.geteuid() == 0 else "this is an ordinary user, not root"


PREREQUISITES: dict[str, Callable[[], str | None]] = {
    "kvm": missing_kvm,
    "guest": missing_guest,
    "net": missing_net,
    "root": missing_root,
    "native": missing_native,
}


def required() -> set[str]:
    """The markers whose prerequisites must be there: PYVMM_REQUIRE, separated by commas."""
    return {name.strip() for name in os.environ.get("PYVMM_REQUIRE", "").split(",")} - {""}


def pytest_configure() -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # what the one makes on the network is no leak of the other's; root only
        ctypes.CDLL(None).unshare(_CLONE_NEWNET)
    unknown = required() - set(PREREQUISITES)
    if unknown:
        raise pytest.UsageError(f"PYVMM_REQUIRE knows {', '.join(PREREQUISITES)}, not {', '.join(sorted(unknown))}")
    if "native" in required() and (reason := missing_native()):  # else its tests, which say so themselves, are skipped
        raise pytest.UsageError(f"PYVMM_REQUIRE=native, but {reason}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose prerequisites are missing, or fail it where PYVMM_REQUIRE asks for them."""
    for marker, missing in PREREQUISITES.items():
        if item.get_closest_marker(marker) is None:
            continue
        reason = missing()
        if reason is None:
            continue
        if marker in required():
            pytest.fail(f"PYVMM_REQUIRE={marker}, but {reason}", pytrace=False)
        pytest.skip(reason)


def descriptors() -> set[tuple[int, str]]:
    """The open file descriptors and what they are."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:  # the listing's own
            continue
    return found


def children() -> set[int]:
    """The process's children, zombies too."""
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                found.update(map(int, file.read().split()))
        except FileNotFoundError:  # a thread that has ended
            continue
    return found


def links() -> set[str]:
    """The network devices that pyvmm made, in the namespace of this thread."""
    return {name for _, name in socket.if_nameindex() if name.startswith(LINK_PREFIXES)}


def _settled(look: Callable[[], set[object]], before: set[object]) -> set[object]:
    """What is more than *before* after a moment's patience."""
    deadline = time.monotonic() + GRACE_S
    while (left := look() - before) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
    return left


@pytest.fixture(scope="session", autouse=True)
def run_directory() -> Iterator[str]:
    """Where the tests' VMs are, apart from the user's own; no VM runs there at the end."""
    from vmm.api import place

    with tempfile.TemporaryDirectory(prefix="pyvmm-run-") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYVMM_RUN", directory)
        yield directory
        assert place.running() == []


@pytest.fixture
def no_others(run_directory: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where the test's VMs are, apart from those of all tests."""
    with tempfile.TemporaryDirectory(prefix="only-", dir=run_directory) as directory:
        monkeypatch.setenv("PYVMM_RUN", directory)
        yield directory


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No descriptor, thread, child process or network device is more after the test than before it."""
    looks: dict[str, Callable[[], set[object]]] = {
        "file descriptors": lambda: set(descriptors()),
        "threads": lambda: set(threading.enumerate()),
        "child processes": lambda: set(children()),
        "network devices": lambda: set(links()),
    }
    before = {what: look() for what, look in looks.items()}
    yield
    left = {what: _settled(look, before[what]) for what, look in looks.items()}
    leaks = [f"{what}: {', '.join(map(str, found))}" for what, found in left.items() if found]
    if leaks:
        pytest.fail("left behind: " + "; ".join(leaks), pytrace=False)
