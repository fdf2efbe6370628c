"""A machine for those who control one from outside: it only notes what is asked of it."""

from __future__ import annotations

import threading


class FakeSnapshot:
    """As `vmm.session.Snapshotting`; it is finished when its machine says `may_finish`."""

    def __init__(self, machine: FakeMachine) -> None:
        self._machine = machine

    def finish(self) -> None:
        self._machine.may_finish.wait(10)

    def close(self) -> None:
        self._machine.snapshots_closed += 1


class FakeMachine:
    """As `vmm.session.Present`. What is typed is in `typed` while it `reads`; a pause waits for `may_pause`."""

    def __init__(self) -> None:
        self.paused = False
        self.reads = True
        self.typed = b""
        self.ctrl_alt_del = 0
        self.snapshots: list[tuple[str, str, bool]] = []
        self.snapshots_closed = 0
        self.may_finish = threading.Event()
        self.may_finish.set()
        self.stopped: list[str] = []
        self.may_pause = threading.Event()
        self.may_pause.set()

    def pause(self, *, wait: bool = False) -> None:
        if wait:
            self.may_pause.wait(10)
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def stop(self, by: str) -> None:
        self.stopped.append(by)

    def type(self, data: bytes) -> bool:
        if self.reads:
            self.typed += data
        return self.reads

    def press_ctrl_alt_del(self) -> None:
        self.ctrl_alt_del += 1

    def begin_snapshot(self, path: str, parent: str = "", *, overlays: bool = False) -> FakeSnapshot:
        self.snapshots.append((path, parent, overlays))
        return FakeSnapshot(self)

    def count_exits(self) -> dict[str, int]:
        return {"out com1.DATA": 3}

    def count_kvm(self) -> dict[str, int]:
        return {"halt_exits": 2}
