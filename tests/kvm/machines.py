"""Machines of a few instructions, in this process, for tests of snapshots."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes import guest
from vmm.config import MachineConfig
from vmm.kvm.assist.probe import host_kind
from vmm.machine import Machine
from vmm.session import Session
from vmm.snapshot.file import Snapshot

PATIENCE_S = 10.0
#: Prints, then gives back whatever is typed.
ECHO = guest.kernel(guest.say("ready\n"), guest.ECHO)


class Machines:
    """Makes machines in *directory*."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._closing: list[Callable[[], None]] = []

    def config(self, kernel: bytes, **options: Any) -> MachineConfig:
        path = self.directory / "kernel"
        path.write_bytes(kernel)
        serial = f"file:{self.directory / 'out'}"
        defaults: dict[str, Any] = {"memory_bytes": 16 << 20, "serial": serial}
        return MachineConfig(kernel=str(path), **(defaults | options))

    def make(self, config: MachineConfig, snapshot: Snapshot | None = None) -> Machine:
        session = Session(
            config, host_kind(None), say=lambda _: None, trace=lambda _: None, cache_dir=None, snapshot=snapshot
        )
        self._closing.append(session.close)
        machine = Machine.build(session)
        self._closing.append(machine.close)
        return machine

    def opened(self, path: str, *, prefault: bool = False) -> Snapshot:
        snapshot = Snapshot(path, prefault=prefault)
        self._closing.append(snapshot.close)
        return snapshot

    def close(self) -> None:
        while self._closing:
            self._closing.pop()()

    def printed(self, text: str) -> None:
        """Wait until all that was printed is *text*."""
        deadline = time.monotonic() + PATIENCE_S
        while (self.directory / "out").read_text() != text:
            assert time.monotonic() < deadline, (self.directory / "out").read_text()
            time.sleep(0.01)
