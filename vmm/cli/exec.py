"""Commands in a guest: `pyvmm exec`, and `pyvmm --kernel … --exec COMMAND`."""

from __future__ import annotations

import os
import signal
import threading

from vmm.agent.client import Agent, AgentError, Completed
from vmm.api.place import directory, is_live
from vmm.cli.options import Option
from vmm.cli.verb import parse_verb
from vmm.errors import BackendError, ConfigError
from vmm.host.vsock import VSOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.session import Session

#: How long the guest that `--exec` boots may take until its agent answers; `--timeout` may be shorter.
_BOOT_S = 600.0
_OPTIONS = (
    Option("interactive", "let the command read stdin; else it has none", short="i"),
    Option("env", "a variable of the command's environment", metavar="NAME=VALUE", short="e", repeatable=True),
    Option("cwd", "where the command starts (/)", metavar="DIRECTORY"),
    Option("timeout", "kill the command after this long: exit code 124", metavar="SECONDS"),
)
_EXIT_TIMEOUT = 124


def main(arguments: Sequence[str], _say: Callable[[str], None]) -> int:
    """Run `pyvmm exec` with *arguments*; the command's exit code, 128 and the signal's number if one killed it."""
    parsed = parse_verb("exec", "NAME COMMAND…", arguments, _OPTIONS)
    if parsed is None:
        return 0
    (name, *command), options = parsed
    pairs = [given.partition("=") for given in options.all("env")]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError("is written NAME=VALUE", where="--env")
    agent = Agent(_socket_of(name))
    signals, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)  # the command gets them, by the pipe
    signal.set_wakeup_fd(wake)
    try:
        done = agent.run(
            command,
            env={key: value for key, _, value in pairs},
            cwd=options.one("cwd"),
            stdin=0 if options.has("interactive") else b"",
            stdout=1,
            stderr=2,
            timeout_s=options.seconds("timeout"),
            signals=signals,
        )
    except TimeoutError:
        if options.has("timeout"):
            return _EXIT_TIMEOUT
        raise
    finally:
        signal.set_wakeup_fd(-1)
        os.close(signals)
        os.close(wake)
    return _exit_code(done)


def _socket_of(name: str) -> str:
    """The Unix socket to the guest of the VM *name*, or the one at the path *name*.

    Raises:
        ConfigError: there is none.
    """
    if "/" in name:
        return name
    path = os.path.join(directory(name), VSOCK)
    if not is_live(name):
        raise ConfigError("no such VM is running", where=f"VM {name}", fix="pyvmm ps lists those that are")
    if not os.path.exists(path):
        raise ConfigError("it has no way to an agent", where=f"VM {name}", fix="start it with --vsock auto")
    return path


def _exit_code(done: Completed) -> int:
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


class Errand:
    """Runs *command*, a line for the shell, in the guest of *session* as soon as its agent answers; then ends the VM.

    `begin` starts it, in a thread of its own; `end`, when the VM has ended, tells how it went.
    """

    def __init__(self, command: str, session: Session) -> None:
        self._command, self._session = command, session
        self._code: int | None = None
        self._error: Exception | None = None

    def begin(self) -> None:
        """The guest is running."""
        threading.Thread(target=self._run, name="exec", daemon=True).start()  # nothing ends a read of stdin

    def end(self) -> int | None:
        """The exit code; None if the VM ended before the command did.

        Raises:
            AgentError: the agent did not answer, or gave up.
            BrokenPipeError, BackendError: a stream of ours is gone.
        """
        if self._error is not None:
            raise self._error
        return self._code

    def _run(self) -> None:
        gate = self._session.backends.vsock
        assert gate is not None  # --exec implies --vsock
        agent = Agent(gate.path, patience_s=_BOOT_S)
        try:
            done = agent.run(["/bin/sh", "-c", self._command], stdin=0, stdout=1, stderr=2)
            if any(not disk.readonly for disk in self._session.config.disks):
                agent.sync(timeout_s=None)
            self._code = _exit_code(done)
        except AgentError as error:
            if self._session.machine is not None:
                self._error = error
        except BrokenPipeError as error:  # nobody reads our stdout any more
            self._error = error
        except OSError as error:
            self._error = BackendError(f"stdin, stdout or stderr: {error.strerror}", where="--exec")
        finally:
            self._session.stop("by --exec")
