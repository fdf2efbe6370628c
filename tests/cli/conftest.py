"""`pyvmm` as its users meet it: a process with arguments, an exit code and what it prints."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pytest

from tests.fakes import guest
from tests.fakes.host import PYVMM
from vmm.api.client import Client

SOFTWARE_KVM = "pyvmm: this host's KVM is software"
#: What no run here may take; the runs themselves take a tenth of a second, or two where a guest is watched.
LIMIT_S = 30
UP = guest.say("up\n")


@dataclass(frozen=True)
class Run:
    """How one run of pyvmm ended. Where KVM is software, pyvmm says so first: that is not among the *messages*."""

    code: int
    output: str
    messages: str
    software_kvm: str


class Process(subprocess.Popen[bytes]):
    """A running pyvmm, killed where the test fails."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, error, traceback)


class Pyvmm:
    """Runs pyvmm in *directory*, which stays empty but for what the test itself puts there."""

    def __init__(self, directory: str, cache: str) -> None:
        self.directory = directory
        self.environment = {**os.environ, "PYVMM_CACHE": cache, "TMPDIR": directory}
        self.environment.pop("PYTHONUNBUFFERED", None)  # users do not have it
        self._own: set[str] = set()

    def file(self, name: str, content: bytes) -> str:
        """A file of the test's."""
        path = os.path.join(self.directory, name)
        with open(path, "wb") as file:
            file.write(content)
        self.may_stay(name)
        return path

    def may_stay(self, name: str) -> None:
        """The test expects this file to be there at the end."""
        self._own.add(name)

    def guest(self, *code: bytes) -> list[str]:
        """Arguments to boot a guest made of *code*."""
        return ["--kernel", self.file("kernel", guest.kernel(*code)), "--memory", "16M"]

    def start(self, *arguments: str, before: tuple[str, ...] = (), **options: Any) -> Process:
        """Start pyvmm, behind the command *before*."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return Process([*before, PYVMM, *arguments], cwd=self.directory, env=self.environment, **pipes | options)

    def __call__(self, *arguments: str, before: tuple[str, ...] = (), **options: Any) -> Run:
        """Run pyvmm to its end."""
        with self.start(*arguments, before=before, **options) as process:
            return finish(process)

    def leftovers(self) -> set[str]:
        return set(os.listdir(self.directory)) - self._own


def finish(process: Process) -> Run:
    """What comes of *process*; the test fails if it does not end by itself."""
    output, messages = process.communicate(timeout=LIMIT_S)
    lines = (messages or b"").decode().splitlines(keepends=True)
    software_kvm = "".join(line for line in lines if line.startswith(SOFTWARE_KVM))
    return Run(process.returncode, (output or b"").decode(), "".join(lines).replace(software_kvm, ""), software_kvm)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The cache of all runs, so that the host is probed once."""
    directory = str(tmp_path_factory.mktemp("cache"))
    os.chmod(directory, 0o777)
    return directory


@pytest.fixture
def pyvmm(tmp_path: os.PathLike[str], cache: str) -> Iterator[Pyvmm]:
    """Runs pyvmm; at the end nothing of it may be left in its directory, which is its TMPDIR too."""
    runner = Pyvmm(str(tmp_path), cache)
    yield runner
    assert runner.leftovers() == set()


@contextmanager
def running(
    pyvmm: Pyvmm, *code: bytes, name: str = "web1", arguments: tuple[str, ...] = (), **options: Any
) -> Iterator[Process]:
    """A guest that has said that it is up; killed at the end if it still runs."""
    with pyvmm.start(*pyvmm.guest(UP, *code), "--name", name, *arguments, **options) as process:
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        with Client(name):  # it listens
            pass
        yield process
        if process.poll() is None:
            process.terminate()
            process.wait(10)


@pytest.fixture
def no_vm_is_left(run_directory: str) -> Iterator[None]:
    yield
    deadline = time.monotonic() + 5
    while left := [name for name in os.listdir(run_directory) if not name.startswith("lan")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


class TerminalRun:
    """pyvmm on a terminal of its own, with somebody typing."""

    def __init__(self, pyvmm: Pyvmm, *arguments: str) -> None:
        self.user, self.terminal = pty.openpty()
        self.before = termios.tcgetattr(self.terminal)
        self.process = pyvmm.start(
            *arguments, stdin=self.terminal, stdout=self.terminal, stderr=self.terminal, start_new_session=True
        )
        self.seen = b""
        self._expected = 0

    def type(self, keys: bytes) -> None:
        os.write(self.user, keys)

    def expect(self, text: bytes) -> None:
        """Read on until *text* was printed, after what was expected before."""
        deadline = time.monotonic() + LIMIT_S
        while text not in self.seen[self._expected :]:
            if not select.select([self.user], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{text!r} was not printed, but {self.seen!r}")
            self.seen += os.read(self.user, 4096)
        self._expected = self.seen.index(text, self._expected) + len(text)

    @property
    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.terminal)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    @property
    def is_as_before(self) -> bool:
        return termios.tcgetattr(self.terminal) == self.before

    def finish(self) -> int:
        """The exit code; everything printed is in `seen`."""
        code = self.process.wait(LIMIT_S)
        while select.select([self.user], [], [], 0)[0]:
            self.seen += os.read(self.user, 4096)
        return code

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.user)
        os.close(self.terminal)


@pytest.fixture
def on_terminal(pyvmm: Pyvmm) -> Iterator[Callable[..., TerminalRun]]:
    """Starts pyvmm on a terminal."""
    runs: list[TerminalRun] = []

    def start(*arguments: str) -> TerminalRun:
        runs.append(TerminalRun(pyvmm, *arguments))
        return runs[-1]

    yield start
    for run in runs:
        run.close()
