"""The user's keyboard: escapes, raw mode and its undoing, and input no faster than the guest takes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.fakes.loop import SteppedLoop
from vmm.host.terminal import HELP, EscapeFilter, RawMode, Terminal

PATIENCE_S = 10.0

# The escape filter.


@pytest.mark.parametrize(
    ("typed", "passed", "commands"),
    [
        (b"ls\r", b"ls\r", ""),
        (b"\x01x", b"", "x"),
        (b"\x01h", b"", "h"),
        (b"\x01d", b"", "d"),
        (b"\x01a", b"\x01", ""),
        (b"\x01\x01", b"\x01", ""),
        (b"\x01\x01x", b"\x01x", ""),
        (b"\x01q", b"\x01q", ""),
        (b"a\x01hb\x01xc", b"abc", "hx"),
        (b"\x03\x1a\x1c\x04", b"\x03\x1a\x1c\x04", ""),
    ],
)
def test_escapes(typed: bytes, passed: bytes, commands: str) -> None:
    assert EscapeFilter().feed(typed) == (passed, commands)
    filtering = EscapeFilter()  # and the same in single bytes
    parts = [filtering.feed(bytes((byte,))) for byte in typed]
    assert (b"".join(part[0] for part in parts), "".join(part[1] for part in parts)) == (passed, commands)


# Raw mode.


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal: the user's, the process's."""
    user, process = os.openpty()
    yield user, process
    os.close(user)
    os.close(process)


def test_raw_mode_passes_every_key_and_comes_back(pty: tuple[int, int]) -> None:
    before = termios.tcgetattr(pty[1])
    raw_mode = RawMode(pty[1])
    local = termios.tcgetattr(pty[1])[3]
    assert not local & (termios.ECHO | termios.ICANON | termios.ISIG)
    raw_mode.restore()
    assert termios.tcgetattr(pty[1]) == before
    raw_mode.restore()


def test_raw_mode_gives_the_signals_back() -> None:
    user, process = os.openpty()
    raw_mode = RawMode(process)
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    raw_mode.restore()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    os.close(user)
    os.close(process)


def test_a_handler_that_the_program_chose_stays() -> None:
    user, process = os.openpty()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        RawMode(process).restore()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.close(user)
        os.close(process)


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(10)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGHUP); time.sleep(10)", -signal.SIGHUP),
        ("os.kill(os.getpid(), signal.SIGQUIT); time.sleep(10)", -signal.SIGQUIT),
        ("raise RuntimeError", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("sys.exit(3)", 3),
        ("threading.Thread(target=time.sleep, args=(10,), daemon=True).start()", 0),
    ],
)
def test_the_terminal_is_put_right_however_the_process_ends(pty: tuple[int, int], end: str, status: int) -> None:
    before = termios.tcgetattr(pty[1])
    program = f"""
import os, resource, signal, sys, termios, threading, time
from vmm.host.terminal import RawMode
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)  # who runs the tests with nohup ignores them
RawMode(0)
assert not termios.tcgetattr(0)[3] & termios.ECHO
print("raw")
{end}
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], stdin=pty[1], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.stdout == "raw\n", ended.stderr
    assert ended.returncode == status
    assert termios.tcgetattr(pty[1]) == before


def test_a_terminal_that_was_hung_up_is_no_error() -> None:
    user, process = os.openpty()
    raw_mode = RawMode(process)
    os.close(user)
    raw_mode.restore()
    os.close(process)


# Feeding the guest.


class Guest:
    """A device with room for *room* bytes more, and what the terminal did to it."""

    def __init__(self, fd: int, room: int = 1 << 20) -> None:
        self.loop, self.lock = SteppedLoop(), threading.Lock()
        self.room = room
        self.got = bytearray()
        self.left = self.ctrl_alt_dels = 0
        self.said: list[str] = []
        self.terminal = Terminal(
            fd,
            self.loop,
            self.lock,
            deliver=self.deliver,
            leave=self.leave,
            ctrl_alt_del=self.ctrl_alt_del,
            say=self.said.append,
        )

    def deliver(self, data: bytes) -> bool:
        assert self.lock.locked()
        self.got += data
        self.room -= len(data)
        return self.room > 0

    def leave(self) -> None:
        self.left += 1

    def ctrl_alt_del(self) -> None:
        self.ctrl_alt_dels += 1

    def serve_until(self, done: Callable[[], bool]) -> None:
        """Serve the loop; what is written to a terminal takes the kernel a moment to hand over."""
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline
            self.loop.settle()

    def close(self) -> None:
        self.terminal.close()
        self.loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The reading and the writing end of a pipe."""
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_what_is_typed_reaches_the_guest_and_commands_do_not(pty: tuple[int, int]) -> None:
    guest = Guest(pty[1])
    os.write(pty[0], b"ls\r\x01h\x03\x01d\x01x")
    guest.serve_until(lambda: guest.left == 1)
    assert guest.got == b"ls\r\x03"
    assert guest.said == [HELP]
    assert guest.ctrl_alt_dels == 1
    guest.close()


def test_a_pipe_is_passed_on_as_it_is(pipe: tuple[int, int]) -> None:
    guest = Guest(pipe[0])
    os.write(pipe[1], b"\x01x\x01")
    guest.loop.settle()
    assert guest.got == b"\x01x\x01"
    assert guest.left == 0
    guest.close()


def test_no_more_is_read_than_the_guest_takes(pipe: tuple[int, int]) -> None:
    guest = Guest(pipe[0], room=1000)
    os.write(pipe[1], bytes(5000))
    guest.loop.settle()
    assert len(guest.got) < 2100
    assert not guest.loop.watches(pipe[0])
    guest.room = 1 << 20
    guest.terminal.resume()
    guest.loop.settle()
    assert len(guest.got) == 5000
    guest.close()


def test_the_end_of_the_input_ends_the_reading_only() -> None:
    reader, writer = os.pipe()
    guest = Guest(reader)
    os.write(writer, b"last")
    os.close(writer)
    guest.loop.settle()
    assert guest.got == b"last"
    assert guest.left == 0
    assert not guest.loop.watches(reader)
    guest.terminal.resume()
    guest.loop.settle()
    assert not guest.loop.watches(reader)
    guest.close()
    os.close(reader)


def test_a_file_is_read_to_its_end_at_the_guests_speed(tmp_path: object) -> None:
    path = f"{tmp_path}/input"
    with open(path, "wb") as file:
        file.write(bytes(10_000))
    fd = os.open(path, os.O_RDONLY)
    guest = Guest(fd, room=3000)
    guest.loop.settle()
    assert 3000 <= len(guest.got) <= 4024
    guest.room = 1 << 20
    guest.terminal.resume()
    guest.loop.settle()
    assert len(guest.got) == 10_000
    guest.close()
    os.close(fd)


def test_dev_null_is_at_its_end_at_once() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    guest = Guest(fd)
    guest.loop.settle()
    assert guest.got == b""
    guest.close()
    os.close(fd)


def test_a_hangup_ends_the_reading() -> None:
    user, process = os.openpty()
    guest = Guest(process)
    os.close(user)
    guest.serve_until(lambda: not guest.loop.watches(process))
    guest.close()
    os.close(process)
