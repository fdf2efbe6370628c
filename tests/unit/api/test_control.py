"""The control socket: docs/control.md, and clients that do not keep to it."""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.fakes.vm import Vm
from vmm import __version__
from vmm.api import commands, control, server
from vmm.errors import ConfigError, HostError
from vmm.host.vsock import VsockGate

PATIENCE_S = 10.0


class Wire:
    """A client that says what it wants."""

    def __init__(self, vm: Vm) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(vm.path("control.sock"))
        self._file = self.socket.makefile("rb")
        try:
            self.greeting = self.read()
        except BaseException:
            self.close()
            raise

    def read(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise EOFError
        message: dict[str, Any] = json.loads(line)
        return message

    def send(self, line: bytes) -> None:
        self.socket.sendall(line)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.send(json.dumps({"id": "x", "do": do, **arguments}).encode() + b"\n")
        return self.read()

    def close(self) -> None:
        self._file.close()
        self.socket.close()


@pytest.fixture
def wire(vm: Vm) -> Iterator[Wire]:
    wire = Wire(vm)
    yield wire
    wire.close()


def test_it_says_who_it_is(wire: Wire) -> None:
    assert wire.greeting == {"pyvmm": __version__, "protocol": 1, "name": "web1"}


def test_an_answer_has_the_id_of_its_request(wire: Wire) -> None:
    wire.send(b'{"id": 7, "do": "status"}\n{"id": "b", "do": "stats"}\n{"do": "stats"}\n')
    assert [wire.read()["id"] for _ in range(3)] == [7, "b", None]


def test_status(vm: Vm, wire: Wire) -> None:
    told = wire.ask("status")["ok"]
    assert (told["name"], told["state"], told["pid"]) == ("web1", "running", os.getpid())
    assert (told["kernel"], told["memory_bytes"], told["cpus"]) == ("/boot/vmlinux", 256 << 20, 1)
    vm.machine.paused = True
    assert wire.ask("status")["ok"]["state"] == "paused"


def test_stats(wire: Wire) -> None:
    assert wire.ask("stats")["ok"] == {
        "exits": {"out com1.DATA": 3}, "kvm": {"halt_exits": 2}, "devices": {}, "assists": {}
    }  # fmt: skip


def test_pause_and_resume(vm: Vm, wire: Wire) -> None:
    assert wire.ask("pause") == {"id": "x", "ok": {}}
    assert vm.machine.paused
    assert wire.ask("resume") == {"id": "x", "ok": {}}
    assert not vm.machine.paused


def test_a_request_that_waits_holds_up_nobody(vm: Vm, wire: Wire) -> None:
    vm.machine.may_pause.clear()
    wire.send(b'{"id": 1, "do": "pause"}\n{"id": 2, "do": "status"}\n')
    assert wire.read()["id"] == 2
    other = Wire(vm)
    assert other.ask("status")["ok"]["state"] == "running"
    other.close()
    vm.machine.may_pause.set()
    assert wire.read() == {"id": 1, "ok": {}}


def test_kill(vm: Vm, wire: Wire) -> None:
    assert wire.ask("kill") == {"id": "x", "ok": {}}
    assert vm.machine.stopped == ["by pyvmm kill"]


def test_stop_asks_the_guest_first(vm: Vm, wire: Wire) -> None:
    vm.machine.paused = True
    threading.Timer(0.05, vm.server.ended.set).start()
    assert wire.ask("stop") == {"id": "x", "ok": {"orderly": True}}
    assert (vm.machine.ctrl_alt_del, vm.machine.paused, vm.machine.stopped) == (1, False, [])
    assert vm.session.shut_down_by == "by pyvmm stop"


def test_stop_asks_the_guest_s_agent_rather_than_its_keyboard(vm: Vm, wire: Wire) -> None:
    vm.session.backends.vsock = gate = VsockGate(vm.path("vsock.sock"))
    asked: list[bytes] = []

    def power_off() -> None:
        with socket.socket(fileno=os.dup(gate.fileno())) as listener:
            listener.settimeout(PATIENCE_S)
            with listener.accept()[0] as client:
                asked.append(client.recv(1000))
                client.sendall(b"OK 1\n")  # and is gone, as an agent is that its init ends
        vm.server.ended.set()

    agent = threading.Thread(target=power_off)
    agent.start()
    assert wire.ask("stop") == {"id": "x", "ok": {"orderly": True}}
    agent.join()
    assert b"\0poweroff\0" in asked[0]
    assert (vm.machine.ctrl_alt_del, vm.machine.stopped) == (0, [])


def test_stop_presses_the_keys_where_no_agent_answers(vm: Vm, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "AGENT_PATIENCE_S", 0.05)
    vm.session.backends.vsock = VsockGate(vm.path("vsock.sock"))
    threading.Timer(0.3, vm.server.ended.set).start()
    assert wire.ask("stop") == {"id": "x", "ok": {"orderly": True}}
    assert vm.machine.ctrl_alt_del == 1


def test_stopping_what_is_ending_is_no_error(vm: Vm, wire: Wire) -> None:
    vm.session.leave()
    threading.Timer(0.05, vm.server.ended.set).start()
    assert wire.ask("stop") == {"id": "x", "ok": {"orderly": True}}


def test_stop_does_not_wait_for_ever(vm: Vm, wire: Wire) -> None:
    wire.send(b'{"id": 1, "do": "stop", "timeout_s": 0.05}\n')
    deadline = time.monotonic() + PATIENCE_S
    while not vm.machine.stopped:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    vm.server.ended.set()
    assert wire.read() == {"id": 1, "ok": {"orderly": False}}


def test_typing(vm: Vm, wire: Wire) -> None:
    assert wire.ask("type", text="uname -a\n" * 1000) == {"id": "x", "ok": {}}
    assert vm.machine.typed == b"uname -a\n" * 1000


def test_typing_to_a_guest_that_does_not_read(vm: Vm, wire: Wire) -> None:
    vm.machine.reads = False
    error = wire.ask("type", text="uname -a\n", timeout_s=0.1)["error"]
    assert (error["kind"], error["message"]) == ("host", "the guest has taken only 0 of 9 bytes")


def test_snapshot(vm: Vm, wire: Wire) -> None:
    assert wire.ask("snapshot", path="/tmp/one") == {"id": "x", "ok": {}}
    assert wire.ask("snapshot", path="/tmp/two", parent="/tmp/one") == {"id": "x", "ok": {}}
    assert wire.ask("snapshot", path="/tmp/three", overlays=True) == {"id": "x", "ok": {}}
    assert vm.machine.snapshots == [
        ("/tmp/one", "", False),
        ("/tmp/two", "/tmp/one", False),
        ("/tmp/three", "", True),
    ]


def test_the_machine_is_free_while_its_snapshot_is_written(vm: Vm, wire: Wire) -> None:
    vm.machine.may_finish.clear()
    wire.send(b'{"id": 1, "do": "snapshot", "path": "/tmp/one"}\n')
    while not vm.machine.snapshots:
        time.sleep(0.01)
    assert wire.ask("type", text="uname -a\n") == {"id": "x", "ok": {}}
    vm.machine.may_finish.set()
    assert wire.read() == {"id": 1, "ok": {}}
    assert vm.machine.snapshots_closed == 1


def test_a_snapshot_at_a_relative_path_is_refused(wire: Wire) -> None:
    error = wire.ask("snapshot", path="/tmp/two", parent="one")["error"]
    assert (error["kind"], error["message"]) == ("config", "parent: must be an absolute path")


def test_between_two_boots_the_next_machine_is_waited_for(vm: Vm, wire: Wire) -> None:
    vm.session.leave()
    assert wire.ask("status")["ok"]["state"] == "running"
    assert wire.ask("stats")["ok"]["exits"] == {}
    wire.send(b'{"id": 1, "do": "pause"}\n')
    time.sleep(0.05)
    vm.session.enter(vm.machine)
    assert wire.read() == {"id": 1, "ok": {}}
    assert vm.machine.paused


def test_when_it_has_ended_there_is_none(vm: Vm, wire: Wire) -> None:
    vm.session.leave()
    wire.send(b'{"id": 1, "do": "pause"}\n')
    time.sleep(0.05)
    vm.server.ended.set()
    assert wire.read()["error"] == {"kind": "host", "message": "the guest has ended", "fix": ""}


def test_events_come_to_those_who_asked(vm: Vm, wire: Wire) -> None:
    other = Wire(vm)
    assert wire.ask("events") == {"id": "x", "ok": {}}
    vm.session.tell("panic", message="Fatal exception")
    vm.session.tell("resumed")
    assert wire.read() == {"event": "panic", "message": "Fatal exception"}
    assert wire.read() == {"event": "resumed"}
    assert "ok" in other.ask("status")
    other.close()


# Mistakes and malice.

MISUSES = {
    "no JSON": b"status\n",
    "an empty line": b"\n",
    "no object": b"[1]\n",
    "no text": b'{"do": 1}\n',
    "no such request": b'{"do": "dance"}\n',
    "no UTF-8": b'{"do": "\xff"}\n',
    "too deep": b"[" * 60000 + b"\n",
    "a number that is none": b'{"id": ' + b"9" * 60000 + b', "do": "status"}\n',
}


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_told_and_the_connection_lives(wire: Wire, misuse: str) -> None:
    wire.send(MISUSES[misuse])
    assert wire.read()["error"]["kind"] == "protocol"
    assert "ok" in wire.ask("status")


@pytest.mark.parametrize("arguments", [{}, {"text": 1}, {"text": None}, {"text": "a", "timeout_s": "soon"},
                                       {"text": "a", "timeout_s": -1}, {"text": "a", "timeout_s": True}])  # fmt: skip
def test_wrong_arguments_are_refused(wire: Wire, arguments: dict[str, Any]) -> None:
    assert wire.ask("type", **arguments)["error"]["kind"] == "config"


def test_half_a_surrogate_is_typed_as_a_question_mark(vm: Vm, wire: Wire) -> None:
    wire.send(b'{"do": "type", "text": "\\ud800"}\n')
    assert wire.read() == {"id": None, "ok": {}}
    assert vm.machine.typed == b"?"


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_line_without_end_is_cut_off(vm: Vm, wire: Wire, end: bytes) -> None:
    wire.send(b"x" * (control.LINE_MAX + 1) + end)
    assert wire.read()["error"]["message"] == f"a line has more than {control.LINE_MAX} bytes"
    with pytest.raises((EOFError, ConnectionResetError)):
        wire.read()


def test_a_line_may_come_in_pieces(wire: Wire) -> None:
    for byte in b'{"id": 1, "do": "status"}\n':
        wire.send(bytes((byte,)))
    assert wire.read()["id"] == 1


def test_who_asks_for_no_more_gets_all_answers(vm: Vm, wire: Wire) -> None:
    vm.machine.may_pause.clear()
    wire.send(b'{"id": 1, "do": "pause"}\n{"id": 2, "do": "status"}\n')
    wire.socket.shutdown(socket.SHUT_WR)
    assert wire.read()["id"] == 2
    vm.machine.may_pause.set()
    assert wire.read()["id"] == 1
    with pytest.raises(EOFError):
        wire.read()


def test_who_hangs_up_before_the_answer_costs_nothing(vm: Vm) -> None:
    vm.machine.may_pause.clear()
    wire = Wire(vm)
    wire.send(b'{"id": 1, "do": "pause"}\n' * 3)
    wire.close()
    vm.machine.may_pause.set()
    settle(lambda: not vm.server.clients and not vm.server.workers)


def test_who_does_not_read_is_cut_off(vm: Vm, wire: Wire) -> None:
    wire.socket.settimeout(1)
    with pytest.raises(OSError):  # noqa: PT012  a full socket, or a broken one
        while True:
            wire.send(b'{"do": "status"}\n' * 100)
    settle(lambda: not vm.server.clients)
    other = Wire(vm)
    assert "ok" in other.ask("status")
    other.close()


def test_two_hundred_clients(vm: Vm) -> None:
    with ExitStack() as stack:
        wires = [Wire(vm) for _ in range(200)]
        for wire in wires:
            stack.callback(wire.close)
            wire.send(b'{"do": "status"}\n')
        assert all(wire.read()["ok"]["name"] == "web1" for wire in wires)
    settle(lambda: not vm.server.clients)


def test_there_is_an_end_to_clients(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CLIENTS_MAX", 2)
    wires = [Wire(vm), Wire(vm)]
    with pytest.raises((EOFError, ConnectionResetError)):
        Wire(vm)
    for wire in wires:
        assert "ok" in wire.ask("status")
        wire.close()


def test_a_client_waits_while_there_are_no_descriptors(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def fail(_: socket.socket) -> None:
        looks.append(time.monotonic())
        raise OSError(errno.EMFILE, "Too many open files")

    with socket.socket(socket.AF_UNIX) as client:
        with monkeypatch.context() as exhausted:
            exhausted.setattr(socket.socket, "accept", fail)
            client.connect(vm.path("control.sock"))
            settle(lambda: len(looks) > 2)
        assert all(later - before > 0.05 for before, later in itertools.pairwise(looks)), "it does not spin"
        client.settimeout(PATIENCE_S)
        assert json.loads(client.recv(4096))


def test_there_is_an_end_to_requests_that_wait(vm: Vm, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "WORKERS_MAX", 2)
    vm.machine.may_pause.clear()
    wire.send(b'{"id": 1, "do": "pause"}\n' * 3)
    assert wire.read()["error"]["kind"] == "host"
    vm.machine.may_pause.set()
    assert [wire.read()["ok"] for _ in range(2)] == [{}, {}]


def test_another_user_is_not_served(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory keeps them out already; this is for one that has been opened to them."""
    ours = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    if ours == 0:
        monkeypatch.setattr(server, "_UCRED", type("", (), {"size": 12, "unpack": lambda _: (1, 54321, 1)}))
    with pytest.raises((EOFError, ConnectionResetError)):
        Wire(vm)


# Failures.


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConfigError("is wrong", where="path", fix="give another"), ("config", "path: is wrong", "give another")),
        (HostError("is full", where="/mnt", fix="make room"), ("host", "/mnt: is full", "make room")),
    ],
)
def test_errors_say_what_and_how_to_mend_it(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, error: Exception, told: tuple[str, ...]
) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise error

    monkeypatch.setitem(commands.WAITING, "pause", fail)
    assert tuple(wire.ask("pause")["error"].values()) == told


def test_a_bug_costs_the_request_and_is_told(vm: Vm, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, Any]:
        raise KeyError("gone")

    monkeypatch.setitem(commands.AT_ONCE, "status", fail)
    assert wire.ask("status")["error"]["kind"] == "bug"
    assert "KeyError: 'gone'" in vm.said[0]
    assert "ok" in wire.ask("stats")


def settle(done: Any) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)
