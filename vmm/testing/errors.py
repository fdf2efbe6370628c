"""What can go wrong with a VM under test. Each error has the VM's name and the last lines of its console.

=================  ===============================================================================
`StartFailed`      there is no VM: what pyvmm said; and the guest did not come up in time
`GuestEnded`       it has ended though nobody asked it to: `code` is pyvmm's exit code
`GuestPanic`       … by a kernel panic
`GuestCrash`       … by a triple fault, an instruction nobody can do, or CPUs halted for good
`GuestHang`        it runs, but its agent does not answer any more
`AgentLost`        it runs, but its agent has hung up: killed, or the guest has rebooted
`CommandFailed`    a command's status is not 0; a `subprocess.CalledProcessError` too
`CommandTimeout`   a command was not done in time; a `subprocess.TimeoutExpired` too
=================  ===============================================================================
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from vmm.errors import VmmError

#: Of the console, in a message.
_LINES = 20


class VMError(VmmError):
    """*what* has happened to the VM *name*, whose console has printed the lines *console*."""

    def __init__(self, what: str, *, name: str = "", console: Sequence[str] = ()) -> None:
        self.what, self.name, self.console = what, name, tuple(console)
        Exception.__init__(self, what)  # not what the other bases of a derived class want

    def __str__(self) -> str:
        told = f"VM {self.name}: {self.what}" if self.name else self.what
        if not self.console:
            return told
        return "\n".join([told, "last console lines:", *(f"  {line}" for line in self.console[-_LINES:])])


class StartFailed(VMError):
    """There is no VM, or its guest did not come up."""


class GuestEnded(VMError):
    """The VM has ended with pyvmm's exit code *code*, though nobody asked for it."""

    def __init__(self, what: str, *, code: int, name: str = "", console: Sequence[str] = ()) -> None:
        super().__init__(what, name=name, console=console)
        self.code = code


class GuestPanic(GuestEnded):
    """The guest's kernel has panicked; `what` has its words."""


class GuestCrash(GuestEnded):
    """The guest cannot run any further; `what` has the report."""


class GuestHang(VMError, TimeoutError):
    """The VM runs, but its agent does not answer."""


class AgentLost(VMError):
    """The VM runs, but the agent in it has ended the connection."""


class CommandFailed(VMError, subprocess.CalledProcessError):
    """A command in the guest ended with another status than 0, which is *returncode*, or minus a signal."""

    def __init__(
        self,
        command: object,
        returncode: int,
        stdout: str | bytes,
        stderr: str | bytes,
        *,
        name: str,
        console: Sequence[str],
    ) -> None:
        how = f"exit status {returncode}" if returncode >= 0 else f"signal {-returncode}"
        lines = [f"{command!r} ended with {how}"]
        for stream, output in (("stdout", stdout), ("stderr", stderr)):
            text = output if isinstance(output, str) else output.decode(errors="replace")
            if text.strip():
                lines += [f"its {stream}:", *(f"  {line}" for line in text.rstrip().splitlines()[-_LINES:])]
        VMError.__init__(self, "\n".join(lines), name=name, console=console)
        self.cmd, self.returncode, self.output, self.stderr = command, returncode, stdout, stderr

    def __str__(self) -> str:
        return VMError.__str__(self)


class CommandTimeout(VMError, subprocess.TimeoutExpired):
    """A command in the guest was not done after *timeout* seconds, and was killed."""

    def __init__(self, command: object, timeout: float, *, name: str, console: Sequence[str]) -> None:
        VMError.__init__(self, f"{command!r} was not done after {timeout:g} seconds", name=name, console=console)
        self.cmd, self.timeout, self.output, self.stderr = command, timeout, None, None

    def __str__(self) -> str:
        return VMError.__str__(self)
