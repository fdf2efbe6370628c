"""A machine for those who control one from outside: it only notes what is asked of it."""

from __future__ import annotations

import threading


class FakeMachine:
    """As `vmm.session.Present`. What is typed is in `typed` while it `reads`; a pause waits for `may_pause`."""

    def __init__(self) -> None:
        self.paused = False
        self.reads = True
        self.typed = b""
        self.ctrl_alt_del = 0
        self.snapshots: list[tuple[str, str, bool]] = []
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

    def snapshot(self, path: str, parent: str = "", *, overlays: bool = False) -> None:
        self.snapshots.append((path, parent, overlays))

    def count_exits(self) -> dict[str, int]:
        return {"out com1.DATA": 3}
