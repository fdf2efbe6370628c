"""The switch process of a lan: frames are moved in C without the GIL; here ports are let in.

A port that connects says `VERSION NUMBER VLAN [MAC NAME]` in one message, perhaps with a descriptor to record into, and
gets its number or a refusal. From then on messages are frames.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading

from vmm.host.lan.place import socket_path
from vmm.host.lan.port import PROTOCOL
from vmm.host.lan.services import Services
from vmm.host.lock import locked
from vmm.native._engine import ffi, lib

#: A port that stays silent for so long is not let in.
_HELLO_S = 1.0
#: How long the first port may take, and how long after the last one somebody may be about to join.
_EMPTY_MS = 1000
#: What the switch keeps a port to: an address is forgotten after so long, so many are known of one port, and so many
#: frames a second go to all others.
LIMITS = {"age_ns": 300 * 10**9, "addresses": 256, "floods": 50_000, "floods_burst": 5_000}


class Switch:
    """The switch of the lan in *directory*, which has its name; *listener* is its socket, which is closed with it."""

    def __init__(self, listener: socket.socket, directory: str) -> None:
        self._listener, self._directory = listener, directory
        #: The Ethernet addresses and names of guests, by their ports; some may have left.
        self._guests: dict[int, tuple[bytes, str]] = {}
        lan = lib.lan_open(listener.fileno(), ffi.new("struct lan_limits *", LIMITS))
        if lan == ffi.NULL:
            raise MemoryError
        self._lan = ffi.gc(lan, lib.lan_close)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._services = Services(ours, os.path.basename(directory))
        code = lib.lan_serve(lan, theirs.detach())
        if code:
            raise OSError(code, os.strerror(code))

    def run(self) -> None:
        """Serve until the last port has left, and nobody is about to join; then nothing is left of the lan."""
        threading.Thread(target=self._services.run, name="services", daemon=True).start()
        with self._listener:
            while True:
                if lib.lan_run(self._lan, _EMPTY_MS) == lib.LAN_KNOCK:
                    self._admit()
                elif self._retire():
                    return

    def _admit(self) -> None:
        """Let in who knocks, or tell why not. Who says nothing of sense, or has gone, is let go."""
        channel, _ = self._listener.accept()
        fds: list[int] = []
        with channel, contextlib.suppress(OSError, ValueError, OverflowError):
            try:
                channel.settimeout(_HELLO_S)
                hello, fds, _, _ = socket.recv_fds(channel, 128, 1)
                version, number, vlan, *guest = hello.decode().split()
                if version != PROTOCOL:
                    channel.send(b"its switch is another pyvmm's: end the guests that are on it first")
                    return
                mac, name = guest or ("", "")
                known = bytes.fromhex(mac), name
                if self._is_running(name):
                    channel.send(f"its guest {name} runs already".encode())
                    return
                joined = lib.lan_join(
                    self._lan, channel.fileno(), int(number), int(vlan) or lib.LAN_NATIVE, fds[0] if fds else -1
                )
                if joined < 0:
                    channel.send(b"all its %d ports are in use" % lib.LAN_PORTS)
                    return
                fds.clear()
                self._guests[joined] = known
                self._services.leases.names = {mac: name for mac, name in self._guests.values() if name}
                os.write(channel.detach(), b"%d" % joined)
            finally:
                for fd in fds:
                    os.close(fd)

    def _is_running(self, name: str) -> bool:
        ports = [port for port, (_, known) in self._guests.items() if known and known == name]
        return any(lib.lan_has(self._lan, port) for port in ports)

    def _retire(self) -> bool:
        """End, unless somebody is about to join."""
        try:
            with locked(self._directory, wait=False), contextlib.suppress(OSError):
                os.unlink(socket_path(self._directory))
                os.rmdir(self._directory)
        except BlockingIOError:
            return False
        except FileNotFoundError:  # somebody has taken it all away
            pass
        return True


def main(arguments: list[str]) -> int:
    """`python -m vmm.host.lan FD DIRECTORY`: returns when the switch runs, in a process of its own."""
    fd, directory = int(arguments[0]), arguments[1]
    switch = Switch(socket.socket(fileno=fd), directory)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    switch.run()
    return 0
