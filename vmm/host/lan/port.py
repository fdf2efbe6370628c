"""A card's port of a lan: joins the switch, and starts one where there is none."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import time

from vmm.errors import BackendError, ConfigError
from vmm.host.lan.dhcp import host_name
from vmm.host.lan.place import lan_directory, make_directory, socket_path
from vmm.host.lock import locked
from vmm.host.uplink import Uplink

#: Said when a port joins: which form of that this is.
PROTOCOL = "1"
MTU, MTU_MAX = 1500, 65521
#: The switch answers as soon as it has a turn.
_ANSWER_S = 5.0
_AGAIN_S = 0.01
#: This one, even where its path leads through directories that the user may not enter.
_INTERPRETER = "/proc/self/exe"
#: More than the default, so that bursts fit; the kernel gives at most its net.core.wmem_max.
_SOCKET_BYTES = 1 << 20


def open_lan(
    name: str, mtu: int | None = None, vlan: int = 0, pcap: str = "", guest: tuple[str, bytes] | None = None
) -> Uplink:
    """Join the lan *name*: without a VLAN (0), in the VLAN *vlan*, or in all of them (`VLAN_TRUNK`).

    *pcap* is a file for what goes through the port. *guest* is by which name the others find it, and its Ethernet
    address. The switch is started if there is none, and again should it die.

    Raises:
        ConfigError: one of the names or *mtu* cannot be.
        BackendError: the switch cannot be started, or has no port left; the guest runs already; or *pcap* cannot be
            written.
    """
    if guest and not host_name(guest[0].encode()) == guest[0]:
        raise ConfigError(
            f"{guest[0]!r} cannot be the name of a guest",
            where="--net name=",
            fix="it must have 1 to 63 characters of a-z, 0-9 and -, and neither begin nor end with -",
        )
    if mtu is not None and mtu > MTU_MAX:
        raise ConfigError(f"mtu={mtu} is more than the {MTU_MAX} of a lan", where="--net lan=")
    port = _Port(name, vlan, pcap, guest)
    try:
        uplink = Uplink(f"lan {name}", mtu or MTU, port.join)
        uplink.name = f"lan {name} port {port.number}"  # by which cards are told apart
    finally:
        port.truncate = False
    return uplink


class _Port:
    """How to join the lan *name*: as `open_lan`. *number* is what the switch gave; it is asked for again."""

    def __init__(self, name: str, vlan: int, pcap: str, guest: tuple[str, bytes] | None) -> None:
        self.number = -1
        self.truncate = True
        self._name, self._vlan, self._pcap = name, vlan, pcap
        self._guest = f" {guest[1].hex()} {guest[0]}" if guest else ""
        self._directory = lan_directory(name)

    def join(self) -> socket.socket:
        """A socket to the switch; it is a port of it.

        Raises:
            BackendError: as `open_lan`.
        """
        where = f"lan {self._name}"
        pcap_fds = [self._open_pcap()] if self._pcap else []
        channel = None
        try:
            channel, answer = self._greet(pcap_fds)
            if not answer.isdigit():
                raise BackendError(answer, where=where)
        except OSError as error:
            raise BackendError(f"cannot join: {error.strerror or error}", where=where) from error
        except BackendError:
            if channel:
                channel.close()
            raise
        finally:
            for fd in pcap_fds:
                os.close(fd)
        self.number = int(answer)
        return channel

    def _greet(self, pcap_fds: list[int]) -> tuple[socket.socket, str]:
        """A connection to the switch, and what it answers."""
        deadline = time.monotonic() + _ANSWER_S
        make_directory(self._directory)
        while True:
            channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
                channel.settimeout(_ANSWER_S)
                with locked(self._directory):
                    make_directory(self._directory)  # a switch that has just ended takes it away
                    self._reach(channel)
                    hello = f"{PROTOCOL} {self.number} {self._vlan}{self._guest}"
                    socket.send_fds(channel, [hello.encode()], pcap_fds)
                    answer = channel.recv(200).decode()
                if not answer:
                    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
                return channel, answer
            except ConnectionError:  # the switch is dying, and its socket not closed yet
                channel.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(_AGAIN_S)
            except BaseException:
                channel.close()
                raise

    def _reach(self, channel: socket.socket) -> None:
        """Connect to the switch. The caller has the lock."""
        path = socket_path(self._directory)
        try:
            channel.connect(path)
        except FileNotFoundError:
            _start_switch(self._name, path)
            channel.connect(path)
        except ConnectionRefusedError:  # it was killed
            os.unlink(path)
            _start_switch(self._name, path)
            channel.connect(path)

    def _open_pcap(self) -> int:
        """The recording, begun; one that a mended port goes on with is not cut off."""
        where = f"--net lan={self._name},pcap={self._pcap}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            fd = os.open(self._pcap, flags | (os.O_TRUNC if self.truncate else 0), 0o600)
        except OSError as error:
            raise BackendError(f"cannot write: {error.strerror}", where=where) from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise BackendError("is no regular file", where=where)
        if self.truncate:
            os.write(fd, PCAP_HEADER)
        return fd


#: pcap-savefile(5): the magic number of records with nanoseconds, version 2.4, whole frames, Ethernet.
PCAP_HEADER = (
    (0xA1B23C4D).to_bytes(4, sys.byteorder)
    + (2).to_bytes(2, sys.byteorder)
    + (4).to_bytes(2, sys.byteorder)
    + bytes(8)
    + (262144).to_bytes(4, sys.byteorder)
    + (1).to_bytes(4, sys.byteorder)
)


def _start_switch(name: str, path: str) -> None:
    """Start the switch that serves *path*; when this returns it can be connected to.

    Raises:
        BackendError: it cannot be started.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        fd = listener.fileno()
        # From the directory of this pyvmm, whatever the user's may have in it.
        home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        done = subprocess.run(
            [sys.executable, "-m", "vmm.host.lan", str(fd), os.path.dirname(path)],
            executable=_INTERPRETER, cwd=home, pass_fds=[fd], check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    if done.returncode:
        os.unlink(path)
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"code {done.returncode}"]
        fix = "it needs the native engine: install pyvmm where there is a C compiler" if "_engine" in said[-1] else ""
        raise BackendError(f"its switch does not start: {said[-1]}", where=f"lan {name}", fix=fix)
