"""A VM without a machine of its own: a real session and server, and a fake machine to control."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fakes.machine import FakeMachine
from vmm.api.place import Place, claim
from vmm.api.server import Server
from vmm.config import MachineConfig
from vmm.kvm.assist.probe import HostKind
from vmm.session import Session


@dataclass
class Vm:
    session: Session
    server: Server
    machine: FakeMachine
    place: Place
    said: list[str]

    def print(self, data: bytes) -> None:
        """Print *data* as the guest."""
        self.session.backends.console.write(data)

    def path(self, name: str) -> str:
        return self.place.file(name)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The directory of all VMs: short enough for sockets, and empty at the end."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as directory:
        monkeypatch.setenv("PYVMM_RUN", directory)
        yield directory
        assert os.listdir(directory) == []


@pytest.fixture
def vm(run: str) -> Iterator[Vm]:
    place = claim("web1")
    said: list[str] = []
    session = Session(
        MachineConfig(kernel="/boot/vmlinux", serial="null", engine="python"),
        HostKind((), syscall_ok=True),
        say=said.append,
        trace=lambda _: None,
        cache_dir=None,
        directory=place.path,
    )
    machine = FakeMachine()
    session.enter(machine)
    server = Server(session, place)
    yield Vm(session, server, machine, place, said)
    machine.may_pause.set()
    session.leave()
    server.close()
    session.close()
    place.release()
