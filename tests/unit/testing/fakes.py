"""VMs that are none, for the store and the plugin: what they were asked is kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Self

from vmm.testing import GuestPanic, VMError
from vmm.testing.config import Config


class FakeVM:
    """Stands in for `vmm.testing.vm.VM`."""

    made: list[FakeVM] = []
    fails: VMError | None = None

    def __init__(self, config: Config, name: str) -> None:
        self.config, self.name = config, name
        self.on_failure: Callable[[Any], None] = lambda _: None
        self.has_failed = self.closed = self.kept = False
        self.commands: list[object] = []
        FakeVM.made.append(self)

    @classmethod
    def of(cls, config: Config, snapshot: object = None, *, name: str = "", **_: object) -> Self:
        del snapshot
        return cls(config, name)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        if FakeVM.fails:
            raise FakeVM.fails
        return self

    def close(self) -> None:
        self.closed = True

    def keep(self) -> None:
        self.kept = True

    def run(self, command: object) -> None:
        self.commands.append(command)

    def rest(self) -> None:
        self.commands.append("(rest)")

    def settle(self) -> None:
        """There is nothing left to do."""

    def request(self, do: str, **arguments: Any) -> dict[str, Any]:
        if do == "snapshot":
            with open(arguments["path"], "w", encoding="ascii") as file:
                file.write("the machine")
        return {"state": "running", "exits": {"hlt": 7}, "devices": {}, "assists": {}}

    def console_lines(self) -> list[str]:
        return ["booting", "login:"]

    @property
    def outcome(self) -> str:
        return "Kernel panic: gone" if self.has_failed else "running"

    def failure(self) -> VMError | None:
        return GuestPanic("Kernel panic: gone", code=120, name=self.name) if self.has_failed else None

    def panic(self) -> None:
        """Die, as from a thread of its own."""
        self.has_failed = True
        self.on_failure(self)


def touch(path: str, seconds: int) -> None:
    """Let the file at *path* be so much older."""
    found = os.stat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns - seconds * 10**9))
