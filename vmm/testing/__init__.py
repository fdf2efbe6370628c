"""VMs for tests: `VM`, `Snapshot`, what they raise, and (in `plugin`) fixtures for pytest. See docs/testing.md."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmm.testing.errors import (
        AgentLost,
        CommandFailed,
        CommandTimeout,
        GuestCrash,
        GuestEnded,
        GuestHang,
        GuestPanic,
        StartFailed,
        VMError,
    )
    from vmm.testing.snapshot import Snapshot
    from vmm.testing.vm import VM

__all__ = [
    "VM",
    "AgentLost",
    "CommandFailed",
    "CommandTimeout",
    "GuestCrash",
    "GuestEnded",
    "GuestHang",
    "GuestPanic",
    "Snapshot",
    "StartFailed",
    "VMError",
]

_ROOMS = {"VM": "vm", "Snapshot": "snapshot"}


def __getattr__(name: str) -> Any:
    """Imported late: every run of pytest on a host with pyvmm imports this package, for the plugin."""
    if name not in __all__:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"vmm.testing.{_ROOMS.get(name, 'errors')}"), name)
