"""`pyvmm pause`, `resume`, `stop` and `kill`: of one running VM or several."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from vmm.api.client import Client, NoAnswer, wait_until_gone
from vmm.api.commands import STOP_TIMEOUT_S
from vmm.api.place import pid_of, running
from vmm.cli.main import failed
from vmm.cli.options import Option
from vmm.cli.verb import parse_verb
from vmm.errors import HostError, VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Say = Callable[[str], None]

_TIMEOUT = Option("timeout", f"how long the guest gets to shut down ({STOP_TIMEOUT_S:g})", metavar="SECONDS")
#: How long a VM may take to end once it has been told to, beyond the guest's time.
_END_S = 10.0
#: A VM that has not heard `kill` by then is killed without its help.
_KILL_S = 3.0


def pause(arguments: Sequence[str], _say: Say) -> int:
    """Run `pyvmm pause` with *arguments*; the exit code."""
    return _each("pause", arguments, lambda name: _request(name, "pause"))


def resume(arguments: Sequence[str], _say: Say) -> int:
    """Run `pyvmm resume` with *arguments*; the exit code."""
    return _each("resume", arguments, lambda name: _request(name, "resume"))


def stop(arguments: Sequence[str], say: Say) -> int:
    """Run `pyvmm stop` with *arguments*; the exit code."""
    parsed = parse_verb("stop", "NAME…", arguments, (_TIMEOUT,))
    if parsed is None:
        return 0
    names, options = parsed
    given_s = options.seconds("timeout")
    timeout_s = STOP_TIMEOUT_S if given_s is None else given_s

    def stop_one(name: str) -> None:
        with Client(name) as client:
            orderly = client.request("stop", wait_s=timeout_s + _END_S, timeout_s=timeout_s)["orderly"]
        if not orderly:
            say(f"{name}: the guest did not shut down within {timeout_s:g} seconds, and was ended")
        wait_until_gone(name, _END_S)

    return _all(names, stop_one)


def kill(arguments: Sequence[str], _say: Say) -> int:
    """Run `pyvmm kill` with *arguments*; the exit code."""
    return _each("kill", arguments, _kill)


def _kill(name: str) -> None:
    """End the VM, by SIGKILL if it does not listen."""
    try:
        with Client(name, timeout_s=_KILL_S) as client:
            client.request("kill")
        if wait_until_gone(name, _END_S):
            return
    except NoAnswer:
        pass
    pid = pid_of(name)
    if pid is not None:
        with suppress(ProcessLookupError):  # it has ended just now
            os.kill(pid, signal.SIGKILL)
    if not wait_until_gone(name, _END_S):
        raise HostError("cannot be killed: it waits for the host's kernel", where=f"VM {name}, process {pid}")
    running()  # takes away what it has left


def _request(name: str, do: str) -> None:
    with Client(name) as client:
        client.request(do)


def _each(verb: str, arguments: Sequence[str], act: Callable[[str], None]) -> int:
    parsed = parse_verb(verb, "NAME…", arguments, ())
    return _all(parsed[0], act) if parsed else 0


def _all(names: Sequence[str], act: Callable[[str], None]) -> int:
    """*act* on each of *names*; what fails is told, the others are done, and the first failure gives the exit code."""
    codes: list[int] = []
    for name in names:
        try:
            act(name)
        except VmmError as error:
            codes.append(failed(error))
    return codes[0] if codes else 0
