"""The host's side of a machine's devices: opened once, kept over the guest's reboots."""

from __future__ import annotations

import os
from collections.abc import Callable

from vmm.config import MachineConfig, NetConfig
from vmm.host.console import Console, HostWriter, open_log
from vmm.host.disk.raw import RawDisk
from vmm.mac import default_mac

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.tap import Tap


class Backends:
    """Disks, taps and the serial console of *config*, all open or none.

    Raises:
        ConfigError, HostError: one of them cannot be opened; the others are closed again.
    """

    def __init__(self, config: MachineConfig, say: Callable[[str], None]) -> None:
        self.disks: list[RawDisk] = []
        self.nets: list[tuple[Tap, bytes]] = []
        self._writer: HostWriter | None = None
        self._log: int | None = None
        try:
            for disk in config.disks:
                self.disks.append(RawDisk(disk.path, readonly=disk.readonly, serial=disk.serial))
            for index, net in enumerate(config.nets):
                tap = _open_net(net)
                self.nets.append((tap, net.mac or default_mac(f"{os.uname().nodename}:{tap.name}:{index}")))
            self.console = self._open_console(config.serial, say)
        except BaseException:
            self.close()
            raise
        self.interactive = config.serial == "stdio"

    def _open_console(self, serial: str, say: Callable[[str], None]) -> Console:
        if serial == "stdio":
            self._writer = HostWriter(1, "stdout", lambda error: say(str(error)))
        elif serial != "null":
            path = serial.removeprefix("file:")
            self._log = open_log(path)
            self._writer = HostWriter(self._log, path, lambda error: say(str(error)))
        return Console(self._writer)

    def on_output_drained(self, callback: Callable[[], None]) -> None:
        """Call *callback*, in another thread, when the console takes output again after it refused some."""
        if self._writer is not None:
            self._writer.drained = callback

    def close(self) -> None:
        """Write out what waits, and close everything; a tap of ours goes away."""
        if self._writer is not None:
            self._writer.close()
        if self._log is not None:
            os.close(self._log)
        for tap, _ in self.nets:
            tap.close()
        for disk in self.disks:
            disk.close()


def _open_net(net: NetConfig) -> Tap:
    if net.tap:
        from vmm.host.tap import open_tap

        return open_tap(net.tap, net.mtu)
    from vmm.host.net.bridge import create_bridge_tap

    return create_bridge_tap(net.bridge, net.mtu)
