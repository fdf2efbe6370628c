"""What a snapshot says of its machine's configuration and disks, as plain values."""

from __future__ import annotations

import os

from vmm import config as configuration
from vmm.config import DiskConfig, MachineConfig, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TYPE = "type"
_KINDS = {kind.__name__: kind for kind in vars(configuration).values() if isinstance(kind, type)}


def plain(value: Any) -> Any:
    """A configuration, or a part of one, as plain values. What is traced is not kept."""
    if isinstance(value, Value):
        return {_TYPE: type(value).__name__} | {name: plain(item) for name, item in vars(value).items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, frozenset):
        return None
    return repr(value) if isinstance(value, float) else value


def config(state: Any) -> MachineConfig:
    """Undo `plain`.

    Raises:
        KeyError, TypeError, ValueError: it is no configuration.
        ConfigError: it is none that can be.
    """
    made = _build(state)
    if not isinstance(made, MachineConfig):
        raise TypeError("it has no configuration")
    return made


def _build(state: Any) -> Any:
    if isinstance(state, list):
        return tuple(map(_build, state))
    if not isinstance(state, dict):
        return state
    fields = {name: _build(item) for name, item in state.items() if name not in (_TYPE, "trace", "timeout_s")}
    kind = _KINDS[state[_TYPE]]
    if not issubclass(kind, Value):
        raise TypeError(f"{state[_TYPE]} is no part of a configuration")
    return kind(**fields)


def absolute(config: MachineConfig) -> MachineConfig:
    """*config*, which means the same in every directory."""

    def found(path: str | None) -> str | None:
        return path and os.path.abspath(path)

    disks = tuple(
        DiskConfig(**(vars(disk) | {"path": found(disk.path), "base": found(disk.base)})) for disk in config.disks
    )
    return MachineConfig(
        **(vars(config) | {"kernel": found(config.kernel), "initrd": found(config.initrd), "disks": disks})
    )


def disk_identity(path: str) -> list[int]:
    """Size and time of change of the image *path*: what tells that it was written to.

    Raises:
        OSError: it is not there.
    """
    found = os.stat(path)
    return [found.st_size, found.st_mtime_ns]
