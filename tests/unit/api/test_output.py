"""What the guest prints, for others than its terminal: `console.sock` and the log."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from tests.fakes.vm import Vm
from vmm.api import output

PATIENCE_S = 10.0


class Watch:
    """Somebody at `console.sock`."""

    def __init__(self, vm: Vm) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(vm.path("console.sock"))

    def read(self, size: int) -> bytes:
        seen = b""
        while len(seen) < size:
            data = self.socket.recv(size - len(seen))
            if not data:
                break
            seen += data
        return seen

    def close(self) -> None:
        self.socket.close()


@pytest.fixture
def watch(vm: Vm) -> Iterator[Watch]:
    watch = Watch(vm)
    yield watch
    watch.close()


def log(vm: Vm, name: str = "log") -> bytes:
    with open(vm.path(name), "rb") as file:
        return file.read()


def settle(done: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_all_watchers_see_what_is_printed(vm: Vm, watch: Watch) -> None:
    other = Watch(vm)
    settle(lambda: len(vm.server.output.watchers) == 2)
    vm.print(b"login: ")
    assert watch.read(7) == other.read(7) == b"login: "
    other.close()


def test_who_comes_later_sees_the_last_of_it_first(vm: Vm) -> None:
    vm.print(b"x" * output.PAST_SIZE + b"login: ")
    watch = Watch(vm)
    assert watch.read(output.PAST_SIZE) == b"x" * (output.PAST_SIZE - 7) + b"login: "
    vm.print(b"password: ")
    assert watch.read(10) == b"password: "
    watch.close()


def test_anybody_may_type(vm: Vm, watch: Watch) -> None:
    watch.socket.sendall(b"root\r")
    settle(lambda: vm.machine.typed == b"root\r")


def test_a_guest_that_does_not_read_makes_typing_wait(vm: Vm, watch: Watch) -> None:
    vm.machine.reads = False
    watch.socket.sendall(b"a" * 5000)
    time.sleep(0.1)
    vm.machine.reads = True
    settle(lambda: vm.machine.typed == b"a" * 5000)


def test_typing_waits_for_who_is_busy_with_the_machine(vm: Vm, watch: Watch) -> None:
    with vm.session.presence:
        watch.socket.sendall(b"ls\r")
        vm.print(b"still printing")
        assert watch.read(14) == b"still printing"
        assert vm.machine.typed == b""
    settle(lambda: vm.machine.typed == b"ls\r")


def test_who_does_not_read_is_cut_off_and_the_guest_goes_on(vm: Vm, watch: Watch) -> None:
    settle(lambda: vm.server.output.watchers)
    for _ in range(40):
        vm.print(b"x" * 50_000)
        time.sleep(0.002)
    settle(lambda: not vm.server.output.watchers)
    assert not watch.read(10_000_000).strip(b"x")


def test_who_hangs_up_is_forgotten(vm: Vm) -> None:
    watch = Watch(vm)
    settle(lambda: vm.server.output.watchers)
    watch.close()
    settle(lambda: not vm.server.output.watchers)


def test_the_log_has_all_of_it(vm: Vm) -> None:
    lines = b"".join(b"line %d\n" % number for number in range(10_000))
    for start in range(0, len(lines), 100):
        vm.print(lines[start : start + 100])
    settle(lambda: log(vm) == lines)


def test_a_big_log_becomes_the_old_one(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LOG_LIMIT", 1000)
    vm.print(b"a" * 1000)
    settle(lambda: os.path.exists(vm.path("log.1")) and os.path.exists(vm.path("log")))
    vm.print(b"b")
    settle(lambda: log(vm) == b"b")
    assert log(vm, "log.1") == b"a" * 1000


def test_messages_that_go_to_the_log_go_to_the_new_one(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LOG_LIMIT", 1000)
    stderr, messages = os.dup(2), os.open(vm.path("log"), os.O_WRONLY | os.O_APPEND)
    try:
        os.dup2(messages, 2)
        vm.print(b"a" * 1000)
        settle(lambda: os.path.exists(vm.path("log.1")) and os.path.exists(vm.path("log")))
        settle(lambda: os.path.samestat(os.stat(vm.path("log")), os.fstat(2)))
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(messages)


def test_what_comes_faster_than_it_is_taken_is_missing_and_said_so(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "WAITING_LIMIT", 10)
    vm.print(b"0123456789abcdef")
    settle(lambda: log(vm) == b"0123456789\r\n[pyvmm: 6 bytes of output are missing here]\r\n")


def test_a_log_that_cannot_be_written_ends_with_a_word(vm: Vm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "LOG_LIMIT", 1)
    os.mkdir(vm.path("log.1"))
    vm.print(b"a")
    settle(lambda: vm.said)
    assert "cannot be written" in vm.said[0]
    vm.print(b"b")
    os.rmdir(vm.path("log.1"))


def test_what_was_printed_last_arrives(vm: Vm, watch: Watch) -> None:
    settle(lambda: vm.server.output.watchers)
    vm.print(b"reboot: Power down\n")
    vm.session.leave()
    vm.server.loop.call_soon(vm.server._leave)
    assert watch.read(1000) == b"reboot: Power down\n"
