"""Whatever stdin, stdout and stderr are, the machine runs; and what the guest prints arrives."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import closing
from typing import BinaryIO

import pytest

from tests.cli.conftest import Pyvmm
from tests.fakes.guest import ECHO, HANG, POWER_OFF, leave, outb, say
from vmm import layout

pytestmark = pytest.mark.kvm

#: Prints one line for ever.
CHATTER = say("again and again\n")
CHATTER += b"\xe9" + (-len(CHATTER) - 5).to_bytes(4, "little", signed=True)


def read_until(fd: int, text: bytes) -> bytes:
    seen = b""
    while text not in seen:
        more = os.read(fd, 4096)
        assert more, f"{text!r} did not come, but {seen!r}"
        seen += more
    return seen


def test_a_pipe_into_the_guest(pyvmm: Pyvmm) -> None:
    with pyvmm.start(*pyvmm.guest(ECHO), stdin=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"Ctrl-A is a byte like any other here: \x01x.\n")
        process.stdin.flush()
        read_until(process.stdout.fileno(), b"here: \x01x.\n")
        process.stdin.close()
        process.terminate()
        assert process.wait(10) == 123


def test_the_end_of_the_input_is_not_the_end_of_the_machine(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--timeout", "1", stdin=subprocess.DEVNULL)
    assert run.code == 124


def test_a_file_into_the_guest(pyvmm: Pyvmm) -> None:
    with tempfile.TemporaryFile() as typed:
        typed.write(b"from a file\n" * 1000)
        typed.seek(0)
        with pyvmm.start(*pyvmm.guest(ECHO), stdin=typed) as process:
            assert process.stdout
            seen = b""
            while seen.count(b"\n") < 1000:
                seen += os.read(process.stdout.fileno(), 4096)
            assert seen == b"from a file\n" * 1000
            process.terminate()
            assert process.wait(10) == 123


CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "all three": "<&- >&- 2>&-"}


@pytest.mark.parametrize("which", CLOSED)
def test_closed_from_the_start(pyvmm: Pyvmm, which: str) -> None:
    """Nothing that pyvmm opens may end up as one of the three, where the guest would type into it or print to it."""
    disk = pyvmm.file("disk.img", b"not to be typed into the guest\n".ljust(512))
    run = pyvmm(*pyvmm.guest(say("hello\n"), leave(0)), "--disk", disk,
                before=("sh", "-c", f'exec "$@" {CLOSED[which]}', "sh"))  # fmt: skip
    assert run.code == 1
    assert run.output == ("" if "stdout" in which or which == "all three" else "hello\n")
    with open(disk, "rb") as file:
        assert file.read() == b"not to be typed into the guest\n".ljust(512)


def test_a_reader_that_leaves_early_does_not_stop_the_guest(pyvmm: Pyvmm) -> None:
    head = ("bash", "-c", '"$@" | head -1; exit ${PIPESTATUS[0]}', "sh")
    run = pyvmm("--timeout", "2", *pyvmm.guest(CHATTER), before=head)
    assert (run.code, run.output) == (124, "again and again\n")
    assert run.messages.startswith("pyvmm: stdout: cannot write the guest's output: Broken pipe\n")


def test_a_reader_that_does_not_read_keeps_nobody(pyvmm: Pyvmm) -> None:
    with pyvmm.start(*pyvmm.guest(CHATTER)) as process:
        assert process.stdout
        read_until(process.stdout.fileno(), b"again")
        process.terminate()
        assert process.wait(10) == 123


def test_output_is_complete_when_the_machine_ends(pyvmm: Pyvmm) -> None:
    lines = "".join(f"line {number}\n" for number in range(2000))
    run = pyvmm(*pyvmm.guest(say(lines), POWER_OFF))
    assert (run.code, run.output) == (0, lines)


@pytest.mark.parametrize("arguments", [("doctor",), ("--help",)])
def test_printing_to_a_pipe_that_nobody_reads(pyvmm: Pyvmm, arguments: tuple[str, ...]) -> None:
    with closing(broken_pipe()) as pipe:
        run = pyvmm(*arguments, stdout=pipe)
    assert run.code == 125
    assert "Traceback" not in run.messages
    assert "Exception" not in run.messages


def test_messages_to_a_pipe_that_nobody_reads_change_no_exit_code(pyvmm: Pyvmm) -> None:
    with closing(broken_pipe()) as pipe:
        assert pyvmm("frobnicate", stdout=pipe, stderr=pipe).code == 2


def broken_pipe() -> BinaryIO:
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "wb")


def test_printing_to_a_full_disk(pyvmm: Pyvmm) -> None:
    with open("/dev/full", "wb") as full:
        run = pyvmm("--help", stdout=full)
    assert (run.code, run.messages) == (125, "pyvmm: stdout: No space left on device\n")


def test_the_debug_console_prints_too(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(outb(layout.PORT_DEBUG_CONSOLE, ord("!")), POWER_OFF))
    assert (run.code, run.output) == (0, "!")
