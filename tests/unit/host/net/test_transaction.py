"""Transactions: wholly or not at all."""

from __future__ import annotations

import pytest

from vmm.errors import BackendError
from vmm.host.net.transaction import apply, mend, revert


class Note:
    """A step that notes what is done to it; *fails* says in which of "do" and "undo" it fails."""

    def __init__(self, name: str, notes: list[str], fails: str = "") -> None:
        self.what, self._notes, self._fails = name, notes, fails
        self.done = False

    def describe(self) -> str:
        return f"make {self.what}"

    def is_done(self) -> bool:
        return self.done

    def do(self) -> None:
        self._note("do")
        self.done = True

    def undo(self) -> None:
        self._note("undo")
        self.done = False

    def _note(self, what: str) -> None:
        self._notes.append(f"{what} {self.what}")
        if what in self._fails.split():
            raise PermissionError(1, "Operation not permitted")


def test_steps_are_done_in_order() -> None:
    notes: list[str] = []
    apply([Note("a", notes), Note("b", notes)], "make all")
    assert notes == ["do a", "do b"]


def test_a_failure_undoes_what_was_begun_the_last_first() -> None:
    notes: list[str] = []
    with pytest.raises(BackendError) as caught:
        apply([Note("a", notes), Note("b", notes, "do"), Note("c", notes)], "make all")
    assert notes == ["do a", "do b", "undo b", "undo a"]
    assert str(caught.value) == (
        "make all: cannot make b: Operation not permitted\n"
        "  the host is as it was before\n"
        "  this needs CAP_NET_ADMIN: run it with sudo"
    )


def test_what_could_not_be_undone_is_told() -> None:
    notes: list[str] = []
    with pytest.raises(BackendError) as caught:
        apply([Note("a", notes, "undo"), Note("b", notes, "do")], "make all")
    assert caught.value.fix.startswith("undone but for\na: Operation not permitted\n")


def test_an_interruption_undoes_too() -> None:
    notes: list[str] = []
    step = Note("b", notes)

    def interrupted() -> None:
        raise KeyboardInterrupt

    step.do = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        apply([Note("a", notes), step], "make all")
    assert notes == ["do a", "undo b", "undo a"]


def test_one_that_cannot_be_undone_does_not_keep_the_others() -> None:
    notes: list[str] = []
    with pytest.raises(BackendError) as caught:
        revert([Note("a", notes), Note("b", notes, "undo"), Note("c", notes)], "delete all")
    assert notes == ["undo c", "undo b", "undo a"]
    assert str(caught.value) == "delete all: cannot remove b: Operation not permitted"


def test_mending_does_what_is_missing() -> None:
    notes: list[str] = []
    there = Note("a", notes)
    there.done = True
    assert mend([there, Note("b", notes)], "repair all") == ["b"]
    assert notes == ["do b"]


def test_mending_that_fails_undoes_nothing() -> None:
    notes: list[str] = []
    with pytest.raises(BackendError, match="cannot make b"):
        mend([Note("a", notes), Note("b", notes, "do")], "repair all")
    assert notes == ["do a", "do b"]
