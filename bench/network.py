"""A network of the bench's own: a namespace that ends with the bench, a tap in it, and frames for it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench.compiled import compiled
from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Iterator

TAP = "bench0"
MAC = "02:00:00:00:00:01"
#: About as many as the kernel has an array for.
QUEUE_FRAMES = 400_000
_CLONE_NEWNET = 0x4000_0000


@contextmanager
def namespace() -> Iterator[None]:
    """A network namespace into which this thread, and what it starts, goes for the while.

    Its devices are gone with it, and that with its last process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise BenchError(f"no network namespace: {os.strerror(ctypes.get_errno())}", fix="run it as root")
        try:
            yield
        finally:
            libc.setns(outside, _CLONE_NEWNET)
    finally:
        os.close(outside)


@contextmanager
def tap() -> Iterator[None]:
    """`TAP`, up, in a namespace as above."""
    with namespace():
        ip(f"tuntap add dev {TAP} mode tap vnet_hdr")
        with open(f"/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6", "w") as file:
            file.write("1")
        ip(f"link set {TAP} up txqueuelen {QUEUE_FRAMES + 1}")
        yield


def fill() -> None:
    """Put `QUEUE_FRAMES` 64-byte frames to `MAC` in the tap's queue."""
    sender = compiled("fill", ["host/fill.c"], ["-O2", "-Wall", "-Wextra", "-Werror"])
    arguments = [sender, TAP, MAC.replace(":", ""), str(QUEUE_FRAMES)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(done.stderr.strip())


def ip(arguments: str) -> None:
    """Run `ip` with these arguments."""
    try:
        done = subprocess.run(["ip", *arguments.split()], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BenchError("there is no ip to make a tap with", fix="sudo apt install iproute2") from None
    if done.returncode:
        raise BenchError(f"ip {arguments}: {done.stderr.strip()}", fix="run it as root")
