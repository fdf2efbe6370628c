"""pexpect on the log of a VM."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from vmm.testing import GuestPanic
from vmm.testing.console import Console, Log


class Vm:
    """What a console knows of its VM."""

    def __init__(self, path: Path) -> None:
        self.path, self.ended = path, False
        self.typed: list[str] = []
        self.panic = GuestPanic("Kernel panic", code=120)

    def prints(self, text: str) -> None:
        with self.path.open("a", newline="") as file:
            file.write(text)


@pytest.fixture
def vm(tmp_path: Path) -> Vm:
    (tmp_path / "log").touch()
    return Vm(tmp_path / "log")


@pytest.fixture
def console(vm: Vm) -> Iterator[Console]:
    made = Console(
        Log(str(vm.path)), lambda text, _: vm.typed.append(text), lambda: vm.ended, lambda: vm.panic, timeout=5
    )
    yield made
    made.close()


def test_what_was_printed_before_is_there(vm: Vm, console: Console) -> None:
    vm.prints("login: ")
    assert console.expect([r"password: ", r"login: "]) == 1


def test_what_is_printed_later_is_waited_for(vm: Vm, console: Console) -> None:
    threading.Timer(0.05, vm.prints, ["a 42 b"]).start()
    console.expect(r"\d+")
    assert (console.before, console.after) == ("a ", "42")


def test_a_character_may_come_in_two_pieces(vm: Vm, console: Console) -> None:
    with vm.path.open("ab") as file:
        file.write("ü".encode()[:1])
    with pytest.raises(pexpect.TIMEOUT):
        console.expect("ü", timeout=0)
    with vm.path.open("ab") as file:
        file.write("ü".encode()[1:])
    console.expect_exact("ü")


def test_lines_are_typed(vm: Vm, console: Console) -> None:
    console.sendline("uname")
    console.send("q")
    assert "".join(vm.typed) == "uname\nq"


def test_the_end_of_the_vm_is_raised_as_what_it_was(vm: Vm, console: Console) -> None:
    vm.prints("last words")
    vm.ended = True
    console.expect("last")
    with pytest.raises(GuestPanic):
        console.expect("more")
    with pytest.raises(GuestPanic):
        console.expect_exact("more")


def test_who_expects_the_end_gets_it(vm: Vm, console: Console) -> None:
    vm.ended = True
    assert console.expect(["more", pexpect.EOF]) == 1


def test_a_new_log_is_followed(vm: Vm, console: Console) -> None:
    vm.prints("one ")
    console.expect("one ")
    os.rename(vm.path, f"{vm.path}.1")
    vm.prints("two")
    console.expect("two")


def test_what_a_log_gets_last_is_read_before_the_new_one(
    vm: Vm, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = os.open

    def look_later(*args: Any, **kwargs: Any) -> int:
        """The VM prints more, and begins another log, between the two looks."""
        monkeypatch.setattr(os, "open", look)
        vm.prints("last ")
        os.rename(vm.path, f"{vm.path}.1")
        vm.prints("first")
        return look(*args, **kwargs)

    vm.prints("one ")
    console.expect("one ")
    monkeypatch.setattr(os, "open", look_later)
    console.expect_exact("last first")


def test_a_log_is_read_when_its_vm_has_taken_it_away(vm: Vm) -> None:
    vm.prints("first\r\n\r\nsecond\r\nthi")
    log = Log(str(vm.path))
    vm.path.unlink()
    assert log.tail(2) == ["second", "thi"]
    assert log.read(5) == b"first"
    again = log.again()
    assert again.read(5) == b"first"
    log.close()
    again.close()
