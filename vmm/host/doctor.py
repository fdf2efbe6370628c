"""What this host gives: each check tries the thing itself, and leaves nothing behind.

The checks of KVM are in `vmm.kvm.doctor`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vmm.errors import BackendError
from vmm.host.tap import attach, open_tun

MIB = 1 << 20
_ENOUGH_MEMORY = 128 * MIB
_LOCKED_MEMORY = 8 * MIB

# linux/sched.h, asm/unistd_64.h, linux/userfaultfd.h
_CLONE_NEWNET = 0x4000_0000
_NR_USERFAULTFD = 323
_NR_IO_URING_SETUP = 425
_IO_URING_PARAMS_SIZE = 120
_USERFAULTFD_IOC_NEW = 0xAA00
_UFFDIO_API = 0xC018_AA3F
_UFFD_API = 0xAA

_NO_PRIVILEGE = "run pyvmm with sudo, or for --net tap=NAME: sudo ip tuntap add dev NAME mode tap user $USER"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Row:
    """One finding. `failed` is there but does not work for us; `absent` is not there, or could not be tried."""

    name: str
    need: Literal["needed", "useful"]
    status: Literal["ok", "failed", "absent"]
    #: What was seen, in one line.
    seen: str
    #: What mends it, commands first; empty if all is well or nothing can be done.
    fix: str = ""


def check_memory() -> Row:
    """Guest RAM: shared memory can be made and mapped, and there is some to be had."""
    name = "guest memory"
    try:
        fd = os.memfd_create("pyvmm-doctor", os.MFD_CLOEXEC)
    except OSError as error:
        return Row(name, "needed", "failed", f"memfd_create: {error.strerror}", "in a container: allow memfd_create")
    try:
        os.ftruncate(fd, _ENOUGH_MEMORY)
        with mmap.mmap(fd, _ENOUGH_MEMORY) as mapping:
            mapping[0] = 1
    except OSError as error:
        return Row(name, "needed", "failed", f"mapping 128 MiB: {error.strerror}", "run: ulimit -v unlimited")
    finally:
        os.close(fd)
    available = available_memory()
    seen = f"{available // MIB} MiB available"
    if available < _ENOUGH_MEMORY:
        return Row(name, "needed", "failed", seen, "end other programs, or raise the memory limit of this container")
    return Row(name, "needed", "ok", seen)


def available_memory() -> int:
    """Bytes that guests could have now, as the kernel estimates it, and as our control group (v2) allows."""
    with open("/proc/meminfo", encoding="ascii") as lines:
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    with open("/proc/self/cgroup", encoding="utf-8") as lines:
        groups = [line.strip()[len("0::") :] for line in lines if line.startswith("0::")]
    for group in groups:
        try:
            limit, used = (_number(f"/sys/fs/cgroup{group}/memory.{name}") for name in ("max", "current"))
        except (OSError, ValueError):  # the root group, another mount point, or "max": no limit
            continue
        available = min(available, max(0, limit - used))
    return available


def _number(path: str) -> int:
    with open(path, encoding="ascii") as file:
        return int(file.read())


def check_tun() -> Row:
    """`/dev/net/tun` opens."""
    try:
        os.close(open_tun())
    except BackendError as error:
        there = os.path.exists("/dev/net/tun")
        return Row("/dev/net/tun", "useful", "failed" if there else "absent", error.what, error.fix)
    return Row("/dev/net/tun", "useful", "ok", "opens")


def check_tap() -> Row:
    """We may make a tap here."""
    try:
        fd = open_tun()
    except BackendError:
        return Row("make a tap", "useful", "absent", "not tried: /dev/net/tun does not open")
    try:
        name = attach(fd, "pyvmm%d")
    except OSError as error:
        if error.errno == errno.EPERM:
            return Row("make a tap", "useful", "failed", "needs CAP_NET_ADMIN", _NO_PRIVILEGE)
        return Row("make a tap", "useful", "failed", str(error.strerror))
    finally:
        os.close(fd)
    return Row("make a tap", "useful", "ok", f"made {name} and removed it")


def check_bridge() -> Row:
    """A tap can be put on a bridge; tried in a network namespace of its own."""
    results: list[Row] = []
    # A namespace belongs to a thread, and goes with it.
    thread = threading.Thread(target=lambda: results.append(_try_bridge()))
    thread.start()
    thread.join()
    return results[0]


def _try_bridge() -> Row:
    name = "tap on a bridge"
    if _libc.unshare(_CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        return Row(name, "useful", "absent", f"not tried: no network namespace to try it in ({reason})")
    from pyroute2 import IPRoute, NetlinkError

    from vmm.host.net.bridge import create_bridge_tap

    try:
        with IPRoute() as routes:
            routes.link("add", ifname="pyvmm-doctor", kind="bridge")
            routes.link("set", index=routes.link_lookup(ifname="pyvmm-doctor")[0], state="up")
        create_bridge_tap("pyvmm-doctor").close()
    except NetlinkError as error:
        if error.code == errno.EPERM:
            return Row(name, "useful", "failed", "needs CAP_NET_ADMIN", _NO_PRIVILEGE)
        return Row(name, "useful", "failed", f"no bridge: {os.strerror(error.code)}", "run: sudo modprobe bridge")
    except BackendError as error:
        return Row(name, "useful", "failed", error.what, error.fix)
    return Row(name, "useful", "ok", "made both in a network namespace of their own")


def check_net_helper() -> Row:
    """The helper for networks answers, and allows us some."""
    from vmm.host.net_helper.client import SET_UP, ask_networks, find_helper

    name = "network helper"
    helper = find_helper()
    if helper is None:
        return Row(name, "useful", "absent", "not set up: networks are root's", SET_UP)
    try:
        networks = ask_networks(helper)
    except BackendError as error:
        return Row(name, "useful", "failed", f"{error.where}: {error.what}", error.fix)
    if not networks:
        return Row(name, "useful", "failed", "no line of its allow-list allows us a network", SET_UP.splitlines()[1])
    return Row(name, "useful", "ok", f"we may join {', '.join(networks)}")


def check_passt() -> Row:
    """passt starts, and finds a network of the host's to lead to."""
    from vmm.host.passt import open_passt

    name = "passt"
    try:
        open_passt().close()
    except BackendError as error:
        there = shutil.which("passt") is not None
        return Row(name, "useful", "failed" if there else "absent", error.what, error.fix)
    return Row(name, "useful", "ok", "starts: --net user gives guests the world")


def check_io_uring() -> Row:
    """An io_uring can be set up."""
    params = ctypes.create_string_buffer(_IO_URING_PARAMS_SIZE)
    fd = _libc.syscall(_NR_IO_URING_SETUP, 4, params)
    if fd >= 0:
        os.close(fd)
        return Row("io_uring", "useful", "ok", "set up")
    code = ctypes.get_errno()
    if code == errno.ENOSYS:
        return Row("io_uring", "useful", "absent", os.strerror(code), "a kernel from 5.1 on has it")
    return Row(
        "io_uring",
        "useful",
        "failed",
        os.strerror(code),
        "run: sudo sysctl kernel.io_uring_disabled=0\nin a container: start it with --security-opt seccomp=unconfined",
    )


def check_userfaultfd() -> Row:
    """Page faults of a guest can be served from user space (faults that KVM takes, not only our own)."""
    fd = _libc.syscall(_NR_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
    code = ctypes.get_errno()
    if fd < 0:
        try:
            fd = _userfaultfd_by_device()
        except OSError:
            missing = code == errno.ENOSYS
            return Row(
                "userfaultfd",
                "useful",
                "absent" if missing else "failed",
                os.strerror(code),
                ""
                if missing
                else "run: sudo setfacl -m u:$USER:rw /dev/userfaultfd\n"
                "or, before Linux 6.1: sudo sysctl vm.unprivileged_userfaultfd=1",
            )
    try:
        fcntl.ioctl(fd, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, 0, 0))
    except OSError as error:
        return Row("userfaultfd", "useful", "failed", f"UFFDIO_API: {error.strerror}")
    finally:
        os.close(fd)
    return Row("userfaultfd", "useful", "ok", "opens")


def _userfaultfd_by_device() -> int:
    device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
    try:
        return int(fcntl.ioctl(device, _USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK))
    finally:
        os.close(device)


def check_locked_memory() -> Row:
    """Some memory can be locked (`mlock`), as io_uring's registered buffers are."""
    with mmap.mmap(-1, _LOCKED_MEMORY) as mapping:
        anchor = ctypes.c_char.from_buffer(mapping)
        # SAFETY: the address is used while the mapping lives, and unmapping unlocks.
        failed = _libc.mlock(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(_LOCKED_MEMORY))
        code = ctypes.get_errno()
        del anchor
    size = f"{_LOCKED_MEMORY // MIB} MiB"
    if failed:
        fix = 'run: sudo prlimit --pid $$ --memlock=unlimited:unlimited (or "* - memlock unlimited" in limits.conf)'
        return Row("locked memory", "useful", "failed", f"locking {size}: {os.strerror(code)}", fix)
    return Row("locked memory", "useful", "ok", f"{size} locked")


#: In the order in which they are shown.
HOST_CHECKS: tuple[Callable[[], Row], ...] = (
    check_memory,
    check_tun,
    check_tap,
    check_bridge,
    check_net_helper,
    check_passt,
    check_io_uring,
    check_userfaultfd,
    check_locked_memory,
)
