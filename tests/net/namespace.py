"""A network namespace of the test's own, and what to do in it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

CLONE_NEWNET = 0x4000_0000
CAP_DAC_READ_SEARCH = 2
CAP_NET_ADMIN = 12
_CAPABILITY_VERSION_3 = 0x2008_0522

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def network_namespace() -> Iterator[None]:
    """Put this thread, and what it starts, into a new network namespace; its devices go with it.

    Raises:
        OSError: this needs CAP_SYS_ADMIN.
    """
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET))
        try:
            yield
        finally:
            _check(_libc.setns(outside, CLONE_NEWNET))
    finally:
        os.close(outside)


@contextmanager
def without_net_admin() -> Iterator[None]:
    """Take CAP_NET_ADMIN from this thread for a while."""
    before = _keep_capabilities(~(1 << CAP_NET_ADMIN))
    try:
        yield
    finally:
        _keep_capabilities(~0, before)


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """This process is an ordinary user for a while, who may yet read root's Python."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(uid)
    os.seteuid(uid)
    try:
        _keep_capabilities(1 << CAP_DAC_READ_SEARCH, ~0)
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _keep_capabilities(kept: int, added: int = 0) -> int:
    """Of this thread's effective capabilities, and *added* ones, those in *kept* stay; what they were."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; then their upper halves
    _check(_libc.capget(header, sets))
    before: int = sets[0]
    sets[0] = (before | added) & kept & sets[1]
    _check(_libc.capset(header, sets))
    return before


def ip(arguments: str) -> str:
    """Run `ip` with these arguments."""
    return subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True).stdout


def make_bridge() -> str:
    """A bridge ``br0`` that is up, with the host's address 10.0.0.1; its name."""
    ip("link add br0 type bridge")
    ip("address add 10.0.0.1/24 dev br0")
    ip("link set br0 up")
    return "br0"


def sysctl(path: str) -> str:
    """The setting *path* of this namespace, under /proc/sys."""
    with open(f"/proc/sys/{path}") as file:
        return file.read().strip()


def await_carrier(name: str) -> None:
    """Until the device *name* has come up: before, the host drops what it would send (net/core/link_watch.c)."""
    deadline = time.monotonic() + 5
    while " UP " not in ip(f"-br link show {name}"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def await_own_address(name: str) -> None:
    """Until the device *name* has its link-local address, with all routes that come with it."""
    deadline = time.monotonic() + 5
    while "local fe80:" not in ip(f"-6 route show table local dev {name}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def links() -> set[str]:
    """The names of this namespace's devices."""
    return {line.split()[0].split("@")[0] for line in ip("-br link").splitlines()}


def open_fds() -> set[tuple[str, str]]:
    """This process's descriptors."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
        except FileNotFoundError:  # listdir's own
            continue
    return found


def _check(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
