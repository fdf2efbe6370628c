"""A backend for testinfra: `pyvmm://NAME` is the running VM NAME, and `host` makes the host of a `VM`.

The plugin of `vmm.testing` makes the first known to testinfra.
"""

from __future__ import annotations

import os
from contextlib import closing
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host

from vmm.agent.client import Agent
from vmm.api.place import directory
from vmm.host.vsock import VSOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.testing.vm import VM

#: How long a command may take, unless `?timeout=SECONDS` says otherwise.
TIMEOUT_S = 60.0


class PyvmmBackend(BaseBackend):  # type: ignore[misc]
    """Runs testinfra's commands in the VM *name* by its agent, as root."""

    NAME = "pyvmm"

    def __init__(self, name: str, *args: Any, timeout: float | str = TIMEOUT_S, **kwargs: Any) -> None:
        super().__init__(name, *args, **kwargs)
        self._path = os.path.join(directory(name), VSOCK)
        self._timeout_s = float(timeout)

    def run(self, command: str, *args: str, **_: Any) -> CommandResult:
        """What *command*, whose `%s` are *args*, has printed, and its status as a shell has it.

        Raises:
            AgentError: the VM does not answer.
        """
        line = self.get_command(command, *args)
        with closing(Agent(self._path)) as agent:  # nobody tells us when there are no more commands
            done = agent.run(["/bin/sh", "-c", line], timeout_s=self._timeout_s)
        status = done.returncode if done.returncode >= 0 else 128 - done.returncode
        return self.result(status, line.encode(), done.stdout, done.stderr)

    def get_encoding(self) -> str:
        """Of what commands print; not asked for, because guests without Python would not know."""
        return "utf-8"


def host(vm: VM) -> Host:
    """The host of testinfra that is *vm*."""
    backend = PyvmmBackend(vm.name, timeout=vm.timeout)
    made = Host(backend)
    backend.set_host(made)
    return made
