"""A VM without a machine of its own: a real session and server, and a fake machine to control."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.fakes.machine import FakeMachine
from vmm.api.place import Place, claim
from vmm.api.server import Server
from vmm.config import MachineConfig, NetConfig
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


@contextmanager
def running(name: str, *nets: NetConfig) -> Iterator[Vm]:
    """The VM *name* with cards on *nets*."""
    place = claim(name)
    said: list[str] = []
    session = Session(
        MachineConfig(kernel="/boot/vmlinux", nets=nets, serial="null", engine="python"),
        HostKind((), syscall_ok=True),
        say=said.append,
        trace=lambda _: None,
        cache_dir=None,
        directory=place.path,
    )
    machine = FakeMachine()
    session.enter(machine)
    server = Server(session, place)
    try:
        yield Vm(session, server, machine, place, said)
    finally:
        machine.may_pause.set()
        session.leave()
        server.close()
        session.close()
        place.release()
