"""Taps: Ethernet frames to and from the host's network, one frame a read or write, over one queue or several.

Every frame has a little-endian `struct virtio_net_hdr_mrg_rxbuf` of `VNET_HEADER_SIZE` bytes before it
(VIRTIO 1.2 §5.1.6).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from vmm.errors import BackendError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

TUN_PATH = "/dev/net/tun"
VNET_HEADER_SIZE = 12

# linux/if_tun.h
TUNSETIFF = 0x400454CA
TUNSETOWNER = 0x400454CC
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
TUNSETQUEUE = 0x400454D9
IFF_TAP = 0x0002
IFF_MULTI_QUEUE = 0x0100
IFF_ATTACH_QUEUE = 0x0200
IFF_DETACH_QUEUE = 0x0400
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
# What the reader of a tap accepts unfinished: checksums, and segmentation of TCP and UDP over IPv4 and IPv6.
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO4 = 0x20
TUN_F_USO6 = 0x40
TUN_F_USO = TUN_F_USO4 | TUN_F_USO6

# linux/sockios.h, linux/if.h
SIOCGIFFLAGS = 0x8913
SIOCGIFMTU = 0x8921
IFF_UP = 0x1

_IFREQ = struct.Struct("16sH22x")  # struct ifreq with its flags
_INT = struct.Struct("i")
_NAME_MAX = 15  # IFNAMSIZ without the terminator
_IOV_MAX = 1024


class TapQueue:
    """One queue of the tap *name*: its descriptor *fd*, non-blocking. One thread at a time reads, one writes."""

    __slots__ = ("_fd", "_name")

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name = fd, name

    def fileno(self) -> int:
        """The descriptor; readable when a frame waits."""
        return self._fd

    def readv(self, views: Sequence[memoryview]) -> int:
        """Take the next frame, header first, into *views*; what does not fit is cut off. Never blocks.

        Returns its size in bytes, or 0 if none waits (or *views* were too small for a header: that frame is lost).

        Raises:
            OSError: the tap is gone (somebody deleted it); it stays readable, so stop watching it.
        """
        try:
            return os.readv(self._fd, views[:_IOV_MAX])
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno == errno.EINVAL:
                return 0
            raise

    def writev(self, views: Sequence[memoryview]) -> bool:
        """Send the frame in *views*, header first. Never blocks.

        Returns whether the host took it: it takes no malformed frame, none in more than 1024 *views*, and nothing
        while the tap is down.
        """
        try:
            return os.writev(self._fd, views) > 0
        except OSError:
            return False

    def mend(self, code: int) -> str:
        """A tap is gone for good when reading from it fails, with the errno *code*.

        Raises:
            BackendError: always.
        """
        raise BackendError(
            f"cannot read: {os.strerror(code)}", where=f"tap {self._name}", fix="was the device deleted?"
        )


class Tap:
    """An attached tap: a queue for each of *fds*, which are closed with it. At first the first queue alone is enabled.

    The host spreads flows over the enabled queues; it sends the frames of a flow to the queue that sent last for it.
    """

    __slots__ = ("_enabled", "mtu", "name", "queues", "segments_udp")
    kind = "tap"
    has_offloads = True

    def __init__(self, fds: Sequence[int], name: str, mtu: int) -> None:
        self.queues = tuple(TapQueue(fd, name) for fd in fds)
        self.name = name
        #: The largest payload of a frame, in bytes: what the guest is to be told.
        self.mtu = mtu
        fcntl.ioctl(fds[0], TUNSETVNETHDRSZ, _INT.pack(VNET_HEADER_SIZE))
        #: Whether UDP can be segmented, either way: the kernel (6.2 and later) knows TUN_F_USO4 and TUN_F_USO6.
        self.segments_udp = self._takes(TUN_F_CSUM | TUN_F_USO)
        self.set_offload(0)  # a tap keeps what its last user set
        self._enabled = len(fds)
        self.enable(1)

    def enable(self, count: int) -> None:
        """Receive on the first *count* queues only (at least one); what waited in the others is lost.

        Raises:
            BackendError: the tap is gone.
        """
        while self._enabled != count:
            up = self._enabled < count
            queue = self.queues[self._enabled if up else self._enabled - 1]
            try:
                fcntl.ioctl(queue.fileno(), TUNSETQUEUE, _IFREQ.pack(b"", IFF_ATTACH_QUEUE if up else IFF_DETACH_QUEUE))
            except OSError as error:
                raise BackendError(f"cannot use {count} queues: {error.strerror}", where=f"tap {self.name}") from error
            self._enabled += 1 if up else -1

    def set_offload(self, flags: int) -> None:
        """Let frames come with the work named by *flags* (`TUN_F_*`) undone; flags that need an absent one are dropped.

        Raises:
            BackendError: this kernel knows none of them.
        """
        if not flags & TUN_F_CSUM:
            flags = 0
        if not flags & (TUN_F_TSO4 | TUN_F_TSO6):
            flags &= ~TUN_F_TSO_ECN
        if flags & TUN_F_USO != TUN_F_USO:  # the kernel knows but both together
            flags &= ~TUN_F_USO
        try:
            fcntl.ioctl(self.queues[0].fileno(), TUNSETOFFLOAD, flags)
        except OSError as error:
            raise BackendError(
                f"offloads {flags:#x} are refused: {error.strerror}", where=f"tap {self.name}"
            ) from error

    def close(self) -> None:
        """Let go of the tap; one that pyvmm made vanishes from its bridge and from the host (about 15 ms)."""
        queues, self.queues = self.queues, ()
        for queue in queues:
            os.close(queue.fileno())

    def _takes(self, flags: int) -> bool:
        try:
            self.set_offload(flags)
        except BackendError:
            return False
        return True


def open_tap(name: str, mtu: int | None = None, queues: int = 1) -> Tap:
    """Attach to *queues* queues of the existing tap *name*; it outlives us.

    *mtu* in bytes is the guest's, at most (and else) the tap's.

    Raises:
        ConfigError: *name* cannot be a device's, or *mtu* is larger than the tap's.
        BackendError: there is no such tap, it is somebody else's, in use, down, or not of the right kind.
    """
    check_name(name, "tap")
    # TUNSETIFF makes a device that does not exist, if it may: so look first.
    flags, tap_mtu = _interface(name)
    fds = [open_tun()]
    try:
        try:
            _attach_all(fds, name, queues)
        except OSError as error:
            raise _refusal(name, error.errno or 0, queues) from error
        if not flags & IFF_UP:
            raise BackendError("the device is down", where=f"tap {name}", fix=f"run: sudo ip link set {name} up")
        return Tap(fds, name, choose_mtu(mtu, tap_mtu, f"tap {name}", name))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _attach_all(fds: list[int], name: str, queues: int) -> None:
    """Attach to *queues* queues of the existing tap *name*: by the descriptor in *fds*, and others added to it."""
    if queues == 1:
        try:
            attach(fds[0], name)
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise  # else it may be one that was made for several queues
    from vmm.host.net.link import tap_holder

    if tap_holder(name):  # the kernel would let both have some of the frames
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
    attach(fds[0], name, multi_queue=True)
    add_queues(fds, name, queues)


def add_queues(fds: list[int], name: str, queues: int) -> None:
    """Open and attach more descriptors of the tap *name*, until *fds* has *queues*.

    Raises:
        OSError: as TUNSETIFF has it.
    """
    while len(fds) < queues:
        fds.append(open_tun())
        attach(fds[-1], name, multi_queue=True)


def open_tun() -> int:
    """A descriptor of `/dev/net/tun`, not yet attached to a device; close-on-exec and non-blocking.

    Raises:
        BackendError: it cannot be opened; the message says what to do.
    """
    try:
        return os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BackendError(f"cannot open: {error.strerror}", where=TUN_PATH, fix=tun_fix(error.errno or 0)) from error


def tun_fix(code: int) -> str:
    """What to do when opening `/dev/net/tun` fails with the errno *code*."""
    if code == errno.ENOENT:
        return (
            "run: sudo modprobe tun\n"
            "if that changes nothing: sudo mkdir -p /dev/net && sudo mknod -m 666 /dev/net/tun c 10 200\n"
            "in a container: start it with --device /dev/net/tun"
        )
    if code in (errno.EACCES, errno.EPERM):
        return "run: sudo setfacl -m u:$USER:rw /dev/net/tun\nin a container: start it with --device /dev/net/tun"
    return "run: sudo modprobe tun"


def attach(fd: int, name: str, *, multi_queue: bool = False) -> str:
    """Attach *fd* to the tap *name*, made if there is none (``%d`` in it: the first free number); its full name.

    With *multi_queue* the tap is one that may have several descriptors, each a queue.

    Raises:
        OSError: as TUNSETIFF has it.
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if multi_queue else 0)
    answer: bytes = fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(os.fsencode(name), flags))
    return answer[:16].rstrip(b"\0").decode()


def check_name(name: str, kind: str) -> None:
    """Raise `ConfigError` unless *name* can be the name of a network device (of this *kind*, for the message)."""
    if not 1 <= len(os.fsencode(name)) <= _NAME_MAX or any(c in "/\0" or c.isspace() for c in name):
        raise ConfigError(
            f"{name!r} cannot be the name of a network device",
            where=f"--net {kind}=",
            fix=f"it must have 1 to {_NAME_MAX} characters, no space and no slash; `ip -br link` lists the devices",
        )


def choose_mtu(wanted: int | None, largest: int, where: str, device: str) -> int:
    """The guest's MTU: *wanted*, or else the *largest* the host's *device* carries.

    Raises:
        ConfigError: *wanted* is larger.
    """
    if wanted is not None and wanted > largest:
        raise ConfigError(
            f"mtu={wanted} is more than the {largest} that {device} carries",
            where=where,
            fix=f"ask for mtu={largest}, or run: sudo ip link set {device} mtu {wanted}",
        )
    return wanted or largest


def _interface(name: str) -> tuple[int, int]:
    """The flags (`IFF_*`) and the MTU in bytes of the network device *name*."""
    import socket  # 2 ms, wanted by nobody else

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            flags = fcntl.ioctl(channel, SIOCGIFFLAGS, _IFREQ.pack(os.fsencode(name), 0))
            mtu = fcntl.ioctl(channel, SIOCGIFMTU, _IFREQ.pack(os.fsencode(name), 0))
        except OSError as error:
            raise BackendError(
                "there is no such device" if error.errno == errno.ENODEV else f"cannot look: {error.strerror}",
                where=f"tap {name}",
                fix=f"run: {_make(name)}",
            ) from error
    return int(_IFREQ.unpack(flags)[1]), int(_INT.unpack_from(mtu, 16)[0])


def _make(name: str, queues: int = 1) -> str:
    multi_queue = " multi_queue" if queues > 1 else ""
    return f"sudo ip tuntap add dev {name} mode tap user $USER{multi_queue} && sudo ip link set {name} up"


def _refusal(name: str, code: int, queues: int) -> BackendError:
    """Why TUNSETIFF refused the existing device *name* with the errno *code*, in the user's words."""
    from vmm.host.net.link import find_link, tap_holder, user_name

    link = find_link(name)
    remake = f"run: sudo ip link del {name} && {_make(name, queues)}"
    if link is None:
        what, fix = "there is no such device", f"run: {_make(name)}"
    elif link.kind != "tun":
        what, fix = f"is no tap, but a {link.kind} device", f"choose another name, and run: {_make('NAME')}"
    elif not link.is_tap:
        what, fix = "is a tun device (IP packets), not a tap (Ethernet frames)", remake
    elif code == errno.EINVAL and queues > 1 and not link.multi_queue:
        what, fix = f"has one queue, not {queues}", remake
    elif code == errno.EBUSY:
        what = f"is in use by {tap_holder(name) or 'another process'}"
        fix = f"end that process, or make a tap for this guest: {_make('NAME')}"
    elif code == errno.EPERM:
        owner = f"group {link.group}" if link.owner is None else f"user {user_name(link.owner)}"
        what = f"belongs to {owner}, and this is {user_name(os.geteuid())}"
        fix = f"run pyvmm as its owner, or {remake}"
    else:
        what, fix = f"cannot attach: {os.strerror(code)}", remake
    return BackendError(what, where=f"tap {name}", fix=fix)
