"""Snapshots of VMs under test: a directory each, with the machine, and what its guest has written to disks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from vmm.errors import ConfigError
from vmm.testing import process
from vmm.testing.config import Config, is_written, over, thrown_away

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.testing.vm import VM

    Prepare = Callable[[VM], object]

_MACHINE = "machine"
_WRITING_S = 600.0


class Snapshot:
    """The snapshot in *directory*, of a machine that *config* (`resolved`) says; `clone` makes VMs that go on from it.

    One that `VM.snapshot` made is gone after `close`, or the end of a `with`; its clones go on.
    """

    def __init__(self, directory: str, config: Config, *, temporary: bool = False) -> None:
        self.directory, self.config = directory, config
        self._temporary = temporary

    @classmethod
    def of(cls, vm: VM) -> Self:
        """Of the running *vm*, as it is now."""
        if any(map(is_written, vm.config.resolved().disks)):
            raise ConfigError("has disks that are written to", where=f"VM {vm.name}")
        directory = tempfile.mkdtemp(prefix=f"pyvmm-{vm.name}-", dir="/var/tmp")
        try:
            vm.request("snapshot", timeout=_WRITING_S, path=os.path.join(directory, _MACHINE))
        except BaseException:
            shutil.rmtree(directory)
            raise
        return cls(directory, vm.config.resolved(), temporary=True)

    @classmethod
    def build(cls, directory: str, config: Config, prepare: Prepare | None, boot_timeout: float) -> None:
        """Boot *config* (`resolved`), let *prepare* do with it what it likes, and leave the snapshot in *directory*."""
        from vmm.testing.vm import VM

        disks = [
            over(disk, _overlay(directory, number)) if is_written(disk) else disk
            for number, disk in enumerate(config.disks)
        ]
        with VM.of(replace(config, disks=tuple(disks)), boot_timeout=boot_timeout) as vm:
            if prepare is not None:
                prepare(vm)
            vm.sync()
            vm.pause()
            vm.request("snapshot", timeout=_WRITING_S, path=os.path.join(directory, _MACHINE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clone(self, name: str = "", *, nets: Sequence[str] | None = None, timeout: float | None = None) -> VM:
        """A VM that goes on from it, with its time and random numbers its own; on the networks *nets*, if given."""
        from vmm.testing.vm import TIMEOUT_S, VM

        config = self.config if nets is None else replace(self.config, nets=tuple(nets))
        return VM.of(config, self, name=name, timeout=TIMEOUT_S if timeout is None else timeout)

    def restore(self, name: str, nets: Sequence[str], timeout: float) -> process.Process:
        """The process of a VM that goes on from it."""
        disks = [
            thrown_away(disk, _overlay(self.directory, number)) if is_written(disk) else disk
            for number, disk in enumerate(self.config.disks)
        ]
        path = os.path.join(self.directory, _MACHINE)
        return process.restore(name, path, disks=disks, nets=nets, wait_s=timeout)

    def close(self) -> None:
        """Let go of it."""
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)


def _overlay(directory: str, number: int) -> str:
    """What the guest has written to its disk *number*."""
    return os.path.join(directory, f"disk{number}.cow")
