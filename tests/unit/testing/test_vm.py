"""What becomes of a VM and its agent, and what is raised for it. On real guests: tests/guest/test_testing.py."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from vmm.api import place
from vmm.api.client import NoAnswer
from vmm.api.warm import Ended
from vmm.errors import ConfigError
from vmm.testing import (
    VM,
    AgentLost,
    CommandFailed,
    CommandTimeout,
    GuestCrash,
    GuestEnded,
    GuestHang,
    GuestPanic,
    StartFailed,
    process,
)

HELLO, DATA, END, OK, ERROR, STDOUT, EXIT = 1, 7, 8, 32, 33, 34, 36
_HEADER = struct.Struct("<II")
#: As the console of a guest that has panicked.
PANIC = "[    1.5] Kernel panic - not syncing: oh no\r\n[    1.6] ---[ end Kernel panic - not syncing: oh no ]---\r\n"


def frame(kind: int, payload: bytes = b"") -> bytes:
    return _HEADER.pack(len(payload), kind) + payload


class FakeMachine:
    """A VM's process, its directory, and an agent that does what *on_exec* says; also the warm process it is from."""

    refuses: ConfigError | None = None

    def __init__(self) -> None:
        self.on_exec: Callable[[socket.socket, bytes], None] = lambda channel, _: channel.sendall(exited(0))
        self.greets = True
        self.kept = False
        self._child = subprocess.Popen(["sleep", "600"])
        self.pid = self._child.pid
        self._said, self._code = "", 123

    def boot(self, arguments: list[str], *, wait_s: float) -> FakeMachine:
        del wait_s
        if self.refuses:
            raise self.refuses
        self.name = arguments[arguments.index("--name") + 1]
        self.directory = place.directory(self.name)
        os.makedirs(self.directory)
        Path(self.directory, place.LOG).write_text("booting\r\n", newline="")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.path.join(self.directory, "vsock.sock"))
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def ends(self, code: int, said: str, console: str = "") -> None:
        """The VM ends like this."""
        with Path(self.directory, place.LOG).open("a", newline="") as log:
            log.write(console)
        self._code, self._said = code, said
        self._listener.shutdown(socket.SHUT_RDWR)
        self._child.terminate()

    def wait(self, timeout_s: float | None = None) -> Ended:
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise NoAnswer("has not ended") from error
        return Ended(self._code, self._said)

    def signal(self, number: int) -> None:
        self._child.send_signal(number)

    def keep(self) -> None:
        self.kept = True

    def close(self) -> None:
        self._child.terminate()
        self._child.wait()
        if hasattr(self, "_listener"):
            with suppress(OSError):  # it is already
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=[channel], daemon=True).start()

    def _answer(self, channel: socket.socket) -> None:
        with channel, suppress(BrokenPipeError):
            channel.recv(len(b"CONNECT 1023\n"))
            channel.sendall(b"OK 1073741824\n")
            while request := _received(channel):
                kind, payload = request
                if kind != HELLO:
                    self.on_exec(channel, payload)
                elif self.greets:
                    channel.sendall(frame(OK, (1).to_bytes(4, "little") + payload))


def _received(channel: socket.socket) -> tuple[int, bytes] | None:
    header = channel.recv(_HEADER.size, socket.MSG_WAITALL)
    if not header:
        return None
    size, kind = _HEADER.unpack(header)
    return kind, channel.recv(size, socket.MSG_WAITALL) if size else b""


def exited(status: int, output: bytes = b"") -> bytes:
    return (frame(STDOUT, output) if output else b"") + frame(EXIT, (status << 8).to_bytes(4, "little"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeMachine]:
    made = FakeMachine()
    monkeypatch.setenv("PYVMM_RUN", str(tmp_path))
    monkeypatch.setattr(process, "warm", lambda: made)
    monkeypatch.setattr("vmm.testing.vm._HANG_S", 0.3)
    monkeypatch.setattr("vmm.testing.vm._ENDING_S", 0.5)
    yield made
    made.close()


@pytest.fixture
def vm(machine: FakeMachine) -> Iterator[VM]:
    with VM("/vmlinux", name="web", timeout=5) as made:
        yield made


def test_what_a_command_prints(vm: VM, machine: FakeMachine) -> None:
    machine.on_exec = lambda channel, _: channel.sendall(exited(0, "ü\n".encode()))
    assert vm.run(["ls"]).stdout == "ü\n"
    assert vm.run(["ls"], text=False).stdout == "ü\n".encode()


def test_a_line_is_for_the_shell(vm: VM, machine: FakeMachine) -> None:
    def repeat(channel: socket.socket, request: bytes) -> None:
        channel.sendall(exited(0, b"|".join(request[8:].split(b"\0")[1:4])))

    machine.on_exec = repeat
    assert "/bin/sh|-c|ls | wc" in vm.run("ls | wc", text=True).stdout


def test_a_status_is_checked_unless_that_is_not_wanted(vm: VM, machine: FakeMachine) -> None:
    machine.on_exec = lambda channel, _: channel.sendall(exited(3))
    with pytest.raises(CommandFailed) as raised:
        vm.run(["false"])
    assert (raised.value.returncode, raised.value.console) == (3, ("booting",))
    assert vm.run(["false"], check=False).returncode == 3


def test_what_the_guest_refuses_is_an_os_error(vm: VM, machine: FakeMachine) -> None:
    machine.on_exec = lambda channel, _: channel.sendall(frame(ERROR, (2).to_bytes(4, "little")))
    with pytest.raises(FileNotFoundError, match="in VM web: 'no-such'"):
        vm.run(["no-such"])


def test_a_command_that_prints_without_end_is_no_sign_of_a_lost_agent(
    vm: VM, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.agent.client.OUTPUT_MAX", 3)
    machine.on_exec = lambda channel, _: channel.sendall(exited(0, b"much"))
    with pytest.raises(OSError, match="File too large in VM web") as raised:
        vm.run(["yes"])
    assert raised.value.errno == errno.EFBIG


def test_a_command_that_takes_too_long_is_told_from_a_guest_that_hangs(vm: VM, machine: FakeMachine) -> None:
    machine.on_exec = lambda channel, _: time.sleep(0.5)
    with pytest.raises(CommandTimeout):
        vm.run(["sleep"], timeout=0.4)
    machine.greets = False
    with pytest.raises(GuestHang):
        vm.run(["sleep"], timeout=0.4)


def test_a_guest_that_hangs_is_told_before_the_command_s_time_is_over(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.testing.vm._BEAT_S", 0.05)
    told = threading.Event()

    def hang(channel: socket.socket, _: bytes) -> None:
        machine.greets = False
        told.wait(10)
        channel.sendall(exited(0))

    machine.on_exec = hang
    with VM("/vmlinux", name="web") as vm:
        vm.on_failure = lambda _: told.set()
        vm.run(["true"])
        assert told.is_set()
        assert isinstance(vm.failure(), GuestHang)


def test_an_agent_that_hangs_up_is_lost(vm: VM, machine: FakeMachine) -> None:
    machine.on_exec = lambda channel, _: channel.shutdown(socket.SHUT_RDWR)
    with pytest.raises(AgentLost):
        vm.run(["reboot"])


@pytest.mark.parametrize(
    ("code", "said", "error", "what"),
    [
        (120, "pyvmm: guest panic: by pvpanic\n", GuestPanic, "Kernel panic - not syncing: oh no"),
        (121, "pyvmm: triple fault\nrip 0\n", GuestCrash, "triple fault\nrip 0"),
        (0, "pyvmm: this host's KVM is software; …\n", GuestEnded, "the guest powered off"),
        (125, "pyvmm: no room\n", GuestEnded, "no room"),
    ],
)
def test_whoever_waits_is_told_how_the_vm_has_ended(
    vm: VM, machine: FakeMachine, *, code: int, said: str, error: type[GuestEnded], what: str
) -> None:
    def end(channel: socket.socket, _: bytes) -> None:
        machine.ends(code, said, PANIC)
        channel.shutdown(socket.SHUT_RDWR)

    machine.on_exec = end
    with pytest.raises(error) as raised:
        vm.run(["true"])
    assert (type(raised.value), raised.value.what, raised.value.code) == (error, what, code)
    assert raised.value.console[0] == "booting"
    with pytest.raises(error):
        vm.console.expect("more")


def test_an_unexpected_end_is_told_at_once_and_an_expected_one_is_not(vm: VM, machine: FakeMachine) -> None:
    told = threading.Event()
    vm.on_failure = lambda _: told.set()
    machine.ends(120, "pyvmm: guest panic: oh")
    assert told.wait(10)
    assert "oh" in repr(vm)
    assert isinstance(vm.failure(), GuestPanic)
    assert vm.failure() is None
    assert vm.wait().code == 120


def test_killing_it_is_no_failure(machine: FakeMachine) -> None:
    with VM("/vmlinux", name="web") as vm:
        assert vm.kill().code == 123
    assert vm.failure() is None
    assert vm.kill().code == 123, "once more, when it is gone"
    assert repr(vm) == "<VM web: the VM was stopped>"


def test_a_vm_that_is_kept_is_left_alone(machine: FakeMachine) -> None:
    with VM("/vmlinux", name="web") as vm:
        vm.keep()
    assert machine.kept
    assert machine._child.poll() is None


def test_a_file_of_the_guest_s_gets_no_more_than_permissions(vm: VM, machine: FakeMachine, tmp_path: Path) -> None:
    machine.on_exec = lambda channel, _: channel.sendall(
        frame(DATA, b"#!") + frame(END, (0o6755).to_bytes(4, "little"))
    )
    assert vm.get("/tool", tmp_path / "tool") == b"#!"
    assert (tmp_path / "tool").stat().st_mode & 0o7777 == 0o755


def test_what_pyvmm_refuses_is_told(machine: FakeMachine) -> None:
    machine.refuses = ConfigError("is no kernel", where="/vmlinux")
    with pytest.raises(StartFailed, match="VM web: /vmlinux: is no kernel"):
        VM("/vmlinux", name="web").start()


def test_a_guest_whose_agent_does_not_come_is_given_up_with_its_console(machine: FakeMachine) -> None:
    machine.greets = False
    with pytest.raises(StartFailed) as raised:
        VM("/vmlinux", name="web", boot_timeout=0.3).start()
    assert raised.value.console == ("booting",)


def test_a_guest_without_an_agent_settles_too(vm: VM, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.testing.guest._RECONNECT_S", 0.1)
    machine._listener.shutdown(socket.SHUT_RDWR)
    vm.settle()
    with pytest.raises(AgentLost):
        vm.run(["true"], timeout=0.1)


def test_a_snapshot_that_is_none_leaves_no_directory(machine: FakeMachine) -> None:
    name = f"web-{os.getpid()}"
    with VM("/vmlinux", name=name) as vm, pytest.raises(AgentLost, match="no such VM"):
        vm.snapshot()
    assert not list(Path("/var/tmp").glob(f"pyvmm-{name}-*"))
