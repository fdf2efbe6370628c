"""Snapshots of VMs under test: a directory each, with the machine, and what its guest has written to disks."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from vmm.testing.config import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.testing.vm import VM

_MACHINE = "machine"
_WRITING_S = 600.0


class Snapshot:
    """The snapshot in *directory*, of a machine that *config* says; `clone` makes VMs that go on from it.

    One that `VM.snapshot` has made is gone after `close`, or the end of a `with`; its clones go on.
    """

    def __init__(self, directory: str, config: Config, *, temporary: bool = False) -> None:
        self.directory, self.config = directory, config
        self._temporary = temporary

    @classmethod
    def of(cls, vm: VM, directory: str = "") -> Self:
        """Of the *vm*, running or paused, as it is now, in *directory*; else in one of its own that goes with it."""
        kept = directory or tempfile.mkdtemp(prefix=f"pyvmm-{vm.name}-", dir="/var/tmp")
        try:
            if vm.request("status")["state"] == "running":
                vm.settle()
            vm.request("snapshot", timeout=_WRITING_S, path=os.path.join(kept, _MACHINE), overlays=True)
        except BaseException:
            shutil.rmtree(kept)
            raise
        return cls(kept, vm.config, temporary=not directory)

    @property
    def path(self) -> str:
        """The file that `pyvmm restore` takes."""
        return os.path.join(self.directory, _MACHINE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def clone(self, name: str = "", *, nets: Sequence[str] | None = None, timeout: float | None = None) -> VM:
        """A VM that goes on from it, with the right time and random numbers of its own; on other *nets*, if given."""
        from vmm.testing.vm import TIMEOUT_S, VM

        config = self.config if nets is None else replace(self.config, nets=tuple(nets))
        return VM.of(config, self, name=name, timeout=TIMEOUT_S if timeout is None else timeout)

    def close(self) -> None:
        """Let go of it."""
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)
