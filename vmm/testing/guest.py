"""What can be done in the guest of a VM under test: run commands, and put and get files."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, TypeVar, overload

from vmm.agent.client import OUTPUT_MAX, Agent, AgentError, AgentRefused
from vmm.testing.errors import CommandFailed, CommandTimeout, VMError

#: Until a guest that was asked something is done with it; and until all of its periodic work is due.
_SETTLE_S, _REST_S = 0.3, 2.1
#: An agent that takes no connection in this time is not there, or the guest is too busy to settle.
_RECONNECT_S = 5.0

_T = TypeVar("_T")


class Guest(ABC):
    """The guest of a VM, through its agent. A base class of `VM`, which knows what becomes of the VM."""

    name: str
    timeout: float
    agent: Agent
    #: How many questions there have been, and whether the answer to the last one is waited for.
    questions = 0
    is_asked = False

    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float | None = None,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        text: Literal[True] = True,
    ) -> subprocess.CompletedProcess[str]: ...

    @overload
    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float | None = None,
        input: str | bytes | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        text: Literal[False],
    ) -> subprocess.CompletedProcess[bytes]: ...

    def run(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        timeout: float | None = None,
        input: str | bytes | None = None,  # noqa: A002  as `subprocess.run` has it
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        text: bool = True,
    ) -> subprocess.CompletedProcess[Any]:
        """Run *command* in the guest as root: its words, or a line for the guest's shell; with what it printed.

        *input* is its stdin, *env* is added to its environment, *cwd* is where it starts. What it prints is text, or
        bytes if *text* is false.

        Raises:
            CommandFailed: its status is not 0, and *check* is true.
            CommandTimeout: it was not done in time, and was killed.
            OSError: it cannot be started: `FileNotFoundError`, `PermissionError` and others, as of `subprocess.run`;
                it has printed more than 64 MiB (EFBIG), and was killed.
        """
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        stdin = input.encode() if isinstance(input, str) else input or b""
        limit = self.timeout if timeout is None else timeout

        def run() -> subprocess.CompletedProcess[Any]:
            done = self.agent.run(argv, stdin=stdin, env=env, cwd=cwd, timeout_s=limit)
            streams = [stream.decode(errors="replace") if text else stream for stream in (done.stdout, done.stderr)]
            return subprocess.CompletedProcess(command, done.returncode, *streams)

        done = self._ask(run, command, limit)
        if check and done.returncode:
            raise CommandFailed(
                command, done.returncode, done.stdout, done.stderr, name=self.name, console=self.console_lines()
            )
        return done

    def put(
        self,
        source: str | os.PathLike[str] | bytes,
        target: str,
        *,
        mode: int | None = None,
        timeout: float | None = None,
    ) -> None:
        """Copy the file *source*, or write those bytes, to the path *target* of the guest, whose directory is made.

        It gets *mode*; else that of the file, or 0644. It appears as a whole, and on the guest's disk when that is
        synced.

        Raises:
            OSError: it cannot be read here, or not be written there.
        """
        limit = self.timeout if timeout is None else timeout
        directory = os.path.dirname(target)
        if isinstance(source, bytes):
            file: Any = io.BytesIO(source)
        else:
            file = open(source, "rb")  # noqa: SIM115
        with file:
            given = 0o644 if isinstance(source, bytes) else os.fstat(file.fileno()).st_mode & 0o777
            mode = given if mode is None else mode

            def put() -> None:
                self.agent.put(file, target, mode, timeout_s=limit)

            try:
                self._ask(put, target, limit)
            except FileNotFoundError:
                self.run(["mkdir", "-p", directory], timeout=limit)
                file.seek(0)
                self._ask(put, target, limit)

    def get(self, source: str, target: str | os.PathLike[str] | None = None, *, timeout: float | None = None) -> bytes:
        """What is in the file *source* of the guest, up to 64 MiB; also copied to *target*, if that is given, with its
        permissions.

        Raises:
            OSError: it cannot be read there, has more than that (EFBIG), or cannot be written here.
        """
        limit = self.timeout if timeout is None else timeout
        data = io.BytesIO()
        mode = self._ask(lambda: self.agent.get(source, data, timeout_s=limit, size_max=OUTPUT_MAX), source, limit)
        if target is not None:
            with open(target, "wb") as file:
                file.write(data.getbuffer())
            os.chmod(target, mode & 0o777)  # the guest says it: no setuid here
        return data.getvalue()

    def put_program(self, *programs: str, timeout: float | None = None) -> None:
        """Copy *programs* of the host into the guest, with the libraries that they need, to the same paths.

        Raises:
            FileNotFoundError: the host does not have one of them.
            CommandFailed, OSError: the guest has no `tar`, or no room.
        """
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
            for path in _needed(programs):
                tar.add(path)
        self.run(["tar", "-x", "-C", "/"], input=archive.getvalue(), timeout=timeout)

    def sync(self, timeout: float | None = None) -> None:
        """Have the guest write to its disks what it has not yet."""
        limit = self.timeout if timeout is None else timeout
        self._ask(lambda: self.agent.sync(timeout_s=limit), "sync", limit)

    def rest(self) -> None:
        """Let the guest's kernel do what it does every second or two, and puts off until something wakes it.

        Linux collects statistics and unused memory then, all at the same whole second; in each clone, if that came soon
        after its snapshot.
        """
        time.sleep(_REST_S)
        self._ask(lambda: self.agent.hello(timeout_s=self.timeout), "rest", self.timeout)

    def settle(self) -> None:
        """Let the guest be done with the last request. What is left of that would have to be done in each clone.

        A connection to its agent is made already: they all have it. A guest without an agent has nothing to settle.
        """
        with suppress(AgentError):
            self.agent.reconnect(_RECONNECT_S)
        time.sleep(_SETTLE_S)

    @abstractmethod
    def console_lines(self) -> list[str]:
        """The last lines that it has printed."""

    def _ask(self, ask: Callable[[], _T], what: object, timeout: float) -> _T:
        """What *ask* gives, or what has become of the VM."""
        self.questions += 1
        self.is_asked = True
        try:
            return ask()
        except AgentRefused as error:
            name = what if isinstance(what, str) else what[0] if isinstance(what, Sequence) else None
            raise OSError(error.errno, f"{os.strerror(error.errno)} in VM {self.name}", name) from None
        except TimeoutError as error:
            if self._answers():
                raise CommandTimeout(what, timeout, name=self.name, console=self.console_lines()) from None
            raise self._failure(error) from error
        except AgentError as error:
            raise self._failure(error) from error
        finally:
            self.is_asked = False

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the agent answers a greeting in time."""

    @abstractmethod
    def _failure(self, error: Exception) -> VMError:
        """What has become of the VM, of which *error* is a sign."""


def _needed(programs: Sequence[str]) -> list[str]:
    """The paths of *programs* and of their libraries."""
    paths: dict[str, None] = {}
    for program in programs:
        path = shutil.which(program)
        if path is None:
            raise FileNotFoundError(f"no program {program} on this host")
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
        paths |= dict.fromkeys([path, *(word for word in listed.split() if word.startswith("/"))])
    return list(paths)
