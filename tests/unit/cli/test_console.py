"""What `pyvmm logs` shows of a log that another takes the place of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm.cli.console import _show


def test_what_was_printed_last_before_a_new_log_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    log, stat = tmp_path / "log", os.stat
    log.write_bytes(b"first")

    def stat_late(path: str) -> os.stat_result:
        with log.open("ab") as file:
            file.write(b", last")
        log.rename(tmp_path / "log.1")
        log.write_bytes(b"new")
        return stat(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", stat_late)
        goes_on = _show(str(log), lambda: True)
    assert goes_on
    assert capsysbinary.readouterr().out == b"first, last"


def test_a_log_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    assert _show(str(tmp_path / "log"), lambda: True)
    assert not _show(str(tmp_path / "log"), lambda: False)
