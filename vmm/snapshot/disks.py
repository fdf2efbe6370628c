"""What is on the disks that nobody but their machine has, kept beside its snapshot as overlays over their images.

The file of a disk is called `SNAPSHOT.vda.` and a random number: what a snapshot has is left alone until another one is
whole that takes its place.
"""

from __future__ import annotations

import os
from contextlib import suppress

from vmm.config import DiskConfig, MachineConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_OVER = {"overlay": True, "base": "", "snapshot": True}


class KeptDisks:
    """The files of the disks that are kept with the snapshot *path*."""

    def __init__(self, path: str) -> None:
        self._path = path
        #: For each disk the name of its file, beside the snapshot; empty: it has none.
        self.names: list[str] = []

    def keep(self, config: MachineConfig, disks: Sequence[Any], *, overlays: bool) -> MachineConfig:
        """*config* with files instead of those *disks* that are thrown away at the end, and, if wanted, of *overlays*.

        Nobody writes to the disks meanwhile.

        Raises:
            ConfigError, BackendError: a file cannot be made.
        """
        for index, (disk, overlay) in enumerate(zip(config.disks, disks, strict=True)):
            name = ""
            if disk.snapshot or (overlays and disk.overlay and not disk.readonly):
                name = f"{os.path.basename(self._path)}.vd{chr(97 + index)}.{os.urandom(8).hex()}"
                overlay.save(_path(self._path, name))
            self.names.append(name)
        return with_files(config, self.names, self._path)

    def sync(self) -> None:
        """Bring the files to their disk."""
        for name in filter(None, self.names):
            with open(_path(self._path, name), "rb") as file:
                os.fsync(file.fileno())

    def drop(self) -> None:
        """Take the files away."""
        remove(self._path, self.names)


def with_files(config: MachineConfig, names: Sequence[str], snapshot: str) -> MachineConfig:
    """*config* with the files *names*, beside *snapshot*, as its disks where they have one; nothing is written to them.

    Raises:
        ValueError: *names* are none of such files.
    """
    if any("/" in name for name in names):
        raise ValueError("a disk's file is not beside it")
    disks = [
        DiskConfig(**(vars(disk) | {"path": _path(snapshot, name)} | _OVER)) if name else disk
        for disk, name in zip(config.disks, names, strict=True)
    ]
    return MachineConfig(**(vars(config) | {"disks": tuple(disks)}))


def remove(snapshot: str, names: Sequence[str]) -> None:
    """Take away the files *names* of *snapshot*; those that cannot be its own stay."""
    for name in names:
        if name.startswith(f"{os.path.basename(snapshot)}.vd"):
            with suppress(FileNotFoundError):
                os.unlink(_path(snapshot, name))


def _path(snapshot: str, name: str) -> str:
    return os.path.join(os.path.dirname(snapshot), name)
