"""The host's side of a machine's devices: opened once, kept over the guest's reboots."""

from __future__ import annotations

import os
from collections.abc import Callable

from vmm.config import DiskConfig, MachineConfig, NetConfig
from vmm.host.console import Console, HostWriter, open_log
from vmm.host.disk.raw import RawDisk
from vmm.mac import default_mac

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.disk.overlay import OverlayDisk
    from vmm.host.tap import Tap
    from vmm.host.uplink import Uplink
    from vmm.host.vsock import VsockGate


class Backends:
    """Disks, taps, sockets and the consoles of *config*, all open or none; *directory* is the VM's own.

    Raises:
        ConfigError, HostError: one of them cannot be opened; the others are closed again.
    """

    def __init__(self, config: MachineConfig, say: Callable[[str], None], directory: str = "") -> None:
        self.disks: list[RawDisk | OverlayDisk] = []
        self.nets: list[tuple[Tap | Uplink, bytes]] = []
        self.vsock: VsockGate | None = None
        self._writers: list[HostWriter] = []
        self._log: int | None = None
        try:
            for disk in config.disks:
                self.disks.append(_open_disk(disk))
            for index, net in enumerate(config.nets):
                uplink, mac = _open_net(net, say)
                self.nets.append((uplink, mac or default_mac(f"{os.uname().nodename}:{uplink.name}:{index}")))
            if config.vsock is not None:
                from vmm.host.vsock import VSOCK, VsockGate

                self.vsock = VsockGate(config.vsock.path or os.path.join(directory, VSOCK))
            self._open_consoles(config, say)
        except BaseException:
            self.close()
            raise

    def _open_consoles(self, config: MachineConfig, say: Callable[[str], None]) -> None:
        """Open the serial port's output, and the terminal's: the same, unless the guest has a console for that."""
        stdio = serial = None
        self.interactive = config.serial == "stdio" or config.console == "virtio"
        if self.interactive:
            stdio = self._open_writer(1, "stdout", say)
        if config.serial.startswith("file:"):
            path = config.serial.removeprefix("file:")
            self._log = open_log(path)
            serial = self._open_writer(self._log, path, say)
        self.serial = self.console = Console(stdio if config.serial == "stdio" else serial)
        if config.console == "virtio":
            self.console = Console(stdio, tail=self.serial.tail)

    def _open_writer(self, fd: int, where: str, say: Callable[[str], None]) -> HostWriter:
        self._writers.append(HostWriter(fd, where, lambda error: say(str(error))))
        return self._writers[-1]

    def on_output_drained(self, callback: Callable[[], None]) -> None:
        """Call *callback*, in another thread, when a console takes output again after it refused some."""
        for writer in self._writers:
            writer.drained = callback

    def close(self) -> None:
        """Write out what waits, and close everything; a tap of ours goes away."""
        for writer in self._writers:
            writer.close()
        if self._log is not None:
            os.close(self._log)
        for uplink, _ in self.nets:
            uplink.close()
        if self.vsock is not None:
            self.vsock.close()
        for disk in self.disks:
            disk.close()


def _open_disk(disk: DiskConfig) -> RawDisk | OverlayDisk:
    if disk.overlay or disk.snapshot:
        from vmm.host.disk.overlay import open_configured

        return open_configured(disk)
    return RawDisk(disk.path, readonly=disk.readonly, serial=disk.serial, cache=disk.cache, discard=disk.discard)


def _open_net(net: NetConfig, say: Callable[[str], None]) -> tuple[Tap | Uplink, bytes | None]:
    """What the card is plugged into, and its address where something says it."""
    if net.network or net.bridge:
        from vmm.host.net.join import join

        tap, mac = join(net)
        return tap, net.mac or mac
    if net.tap:
        from vmm.host.tap import open_tap

        return open_tap(net.tap, net.mtu, net.queues), net.mac
    if net.lan:
        from vmm.host.lan.port import open_lan

        mac = net.mac or (default_mac(f"lan {net.lan}/{net.name}") if net.name else None)
        guest = (net.name, mac) if net.name and mac else None
        return open_lan(net.lan, net.mtu, net.vlan, net.pcap, guest), mac
    if net.user:
        from vmm.host.passt import open_passt

        return open_passt(net.mtu, net.forwards), net.mac
    from vmm.host.auto import open_auto

    return open_auto(net.mtu, say), net.mac
