"""Where the guest's output goes."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator

import pytest

from vmm.errors import BackendError, ConfigError
from vmm.host.console import LINE_LIMIT, OUTPUT_LIMIT, TAIL_SIZE, Console, ConsoleTail, HostWriter, PanicWatch, open_log

PATIENCE_S = 10.0


# What is kept.


def test_the_tail_gives_the_last_lines() -> None:
    tail = ConsoleTail()
    tail.feed(b"one\r\ntwo\r\nthr")
    tail.feed(b"ee\r\n")
    assert tail.lines(2) == ["two", "three"]
    assert tail.lines(100) == ["one", "two", "three"]


def test_the_tail_gives_an_unfinished_line_too() -> None:
    tail = ConsoleTail()
    tail.feed(b"login: ")
    assert tail.lines(5) == ["login: "]


def test_an_empty_tail_has_no_lines() -> None:
    assert ConsoleTail().lines(10) == []


def test_the_tail_does_not_grow() -> None:
    tail = ConsoleTail()
    for i in range(100_000):
        tail.feed(b"line %d\n" % i)
    assert len(tail._bytes) <= 2 * TAIL_SIZE + 16
    assert tail.lines(1) == ["line 99999"]


def test_the_tail_is_safe_to_print() -> None:
    tail = ConsoleTail()
    tail.feed(b"\x1b]0;title\x07 \xff\xfe \tok\n")
    assert tail.lines(1) == ["?]0;title? \ufffd\ufffd \tok"]


# What counts as a panic.


@pytest.mark.parametrize(
    "line",
    [
        b"Kernel panic - not syncing: Fatal exception",
        b"[    1.234567] Kernel panic - not syncing: Fatal exception",
        b"[12345.678901] Kernel panic - not syncing: Fatal exception",
        b"[    1.234567][    T1] Kernel panic - not syncing: Fatal exception",
        b"[    1.234567] ---[ end Kernel panic - not syncing: Fatal exception ]---",
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_panic_is_recognised_and_its_message_told(line: bytes, end: bytes) -> None:
    assert PanicWatch().feed(b"before\n" + line + end + b"after") == "Fatal exception"
    watch = PanicWatch()
    told = [watch.feed(bytes((byte,))) for byte in line + end]
    assert told == [None] * (len(told) - 1) + ["Fatal exception"]


@pytest.mark.parametrize(
    "line",
    [
        b"user: Kernel panic - not syncing: no",
        b"# Kernel panic - not syncing: no",
        b"[ oops ] Kernel panic - not syncing: no",
        b"[    1.2 Kernel panic - not syncing: no",
        b"Kernel panic",
        b"x" * LINE_LIMIT + b"Kernel panic - not syncing: no",
    ],
)
def test_other_lines_are_no_panic(line: bytes) -> None:
    assert PanicWatch().feed(line + b"\n") is None


def test_an_unfinished_line_is_no_panic_yet() -> None:
    watch = PanicWatch()
    assert watch.feed(b"Kernel panic - not syncing: VFS: Unable") is None
    assert watch.feed(b" to mount root\n") == "VFS: Unable to mount root"


def test_a_line_without_end_is_not_kept_whole() -> None:
    watch = PanicWatch()
    for _ in range(1000):
        watch.feed(bytes(1000))
    assert len(watch._line) == LINE_LIMIT


# What reaches the host.


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_a_byte_is_written_promptly(pipe: tuple[int, int]) -> None:
    writer = HostWriter(pipe[1], "stdout")
    assert writer.write(b"$")
    assert os.read(pipe[0], 10) == b"$"
    assert writer.close()


def test_bytes_of_one_burst_are_written_in_few_goes(tmp_path: object) -> None:
    reader, writing = os.pipe2(os.O_DIRECT)  # a packet per write
    writer = HostWriter(writing, "stdout")
    data = b"0123456789" * 100
    for byte in data:
        writer.write(bytes((byte,)))
    assert writer.close()
    os.close(writing)
    packets = list(iter(lambda: os.read(reader, 1 << 16), b""))
    os.close(reader)
    assert b"".join(packets) == data
    assert len(packets) < len(data) / 4


def test_a_host_that_does_not_read_makes_the_guest_wait_and_loses_nothing(pipe: tuple[int, int]) -> None:
    drained = threading.Event()
    writer = HostWriter(pipe[1], "stdout")
    writer.drained = drained.set
    sent = bytearray()
    chunk = bytes(range(256))
    refusals = 0
    while refusals < 20:  # 20 refusals in a row with time between: the pipe is full and so is the buffer
        if writer.write(chunk):
            sent += chunk
            refusals = 0
        else:
            refusals += 1
            time.sleep(0.01)
    drained.clear()
    assert not writer.write(b"x")
    assert len(sent) <= 2 * OUTPUT_LIMIT + fcntl.fcntl(pipe[1], fcntl.F_GETPIPE_SZ)
    got = bytearray()
    while len(got) < len(sent):
        got += os.read(pipe[0], 1 << 16)
    assert got == sent
    assert drained.wait(PATIENCE_S)
    assert writer.write(b"x")
    assert writer.close()


def test_closing_does_not_wait_for_ever_for_a_host_that_does_not_read() -> None:
    reader, writing = os.pipe()
    writer = HostWriter(writing, "stdout")
    pending = 2 * fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
    for _ in range(pending // OUTPUT_LIMIT):
        while not writer.write(bytes(OUTPUT_LIMIT)):
            time.sleep(0.01)
    assert not writer.close(timeout_s=0.1)
    while pending:
        pending -= len(os.read(reader, 1 << 16))
    assert writer.close(PATIENCE_S)
    os.close(reader)
    os.close(writing)


def test_a_host_that_hangs_up_is_reported_once_and_the_guest_goes_on() -> None:
    errors: list[BackendError] = []
    reader, writing = os.pipe()
    writer = HostWriter(writing, "stdout", errors.append)
    os.close(reader)
    for _ in range(5):
        assert writer.write(b"x")
        time.sleep(0.01)
    assert writer.close()
    os.close(writing)
    assert [str(error).splitlines()[0] for error in errors] == [
        "stdout: cannot write the guest's output: Broken pipe",
    ]


def test_an_open_file_that_others_share_is_left_as_it_is(pipe: tuple[int, int]) -> None:
    writer = HostWriter(pipe[1], "stdout")
    writer.write(b"x")
    assert os.get_blocking(pipe[1])
    assert writer.close()


def test_an_open_file_that_somebody_made_non_blocking_loses_nothing(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = HostWriter(pipe[1], "stdout")
    sent = bytes(range(250)) * 1000
    got = bytearray()
    for start in range(0, len(sent), 1000):
        while not writer.write(sent[start : start + 1000]):
            got += os.read(pipe[0], 5000)
    while len(got) < len(sent):
        got += os.read(pipe[0], 1 << 16)
    assert got == sent
    assert writer.close()


def test_the_console_keeps_writes_and_watches(pipe: tuple[int, int]) -> None:
    panics: list[str] = []
    writer = HostWriter(pipe[1], "stdout")
    console = Console(writer)
    console.panicked = panics.append
    assert console.write(b"Kernel panic - not syncing: oh\n")
    console.say("host\n")
    assert writer.close()
    assert os.read(pipe[0], 100) == b"Kernel panic - not syncing: oh\nhost\n"
    assert panics == ["oh"]
    assert console.tail.lines(10) == ["Kernel panic - not syncing: oh"]


def test_a_console_to_nowhere_still_keeps_and_watches() -> None:
    panics: list[str] = []
    console = Console(None)
    console.panicked = panics.append
    assert console.write(b"Kernel panic - not syncing: oh\n")
    assert panics == ["oh"]
    assert console.tail.lines(1) == ["Kernel panic - not syncing: oh"]


def test_a_log_is_created_and_emptied(tmp_path: object) -> None:
    path = f"{tmp_path}/serial.log"
    for _ in range(2):
        fd = open_log(path)
        writer = HostWriter(fd, path)
        writer.write(b"hello")
        assert writer.close()
        os.close(fd)
    with open(path, "rb") as file:
        assert file.read() == b"hello"


def test_a_log_that_cannot_be_is_the_users_mistake(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match=r"--serial: cannot write .*: Is a directory"):
        open_log(f"{tmp_path}")
