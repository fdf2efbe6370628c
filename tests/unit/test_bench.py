"""The benches' own parts: the form of their figures, and the tiny guest."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from bench import boot_rows, qemu, report, tiny
from bench.errors import BenchError
from bench.report import Row
from vmm.boot import elf

BESIDE = Row("start", "ms", "from here to there", 1.2, [3.0, 1.0, 2.0], "QEMU 7.2", [2.0, 1.0, 4.0])
ALONE = Row("boot", "s", "from here to there", 12, [13.0, 12.5])


def test_a_row_beside_a_peer() -> None:
    assert BESIDE.as_json() == {
        "measure": "start",
        "unit": "ms",
        "runs": 3,
        "pyvmm": {"median": 2.0, "min": 1.0, "max": 3.0},
        "peer_name": "QEMU 7.2",
        "peer": {"median": 2.0, "min": 1.0, "max": 4.0},
        "ratio": 1.0,
        "target": 1.2,
        "met": True,
    }


def test_a_row_without_a_peer_has_an_absolute_target() -> None:
    row = ALONE.as_json()
    assert (row["peer_name"], row["peer"], row["ratio"]) == (None, None, None)
    assert (row["target"], row["met"]) == (12, False)


def test_the_table_says_it_all() -> None:
    text = report.table([BESIDE, ALONE])
    head, beside, alone, *clocks = text.splitlines()
    assert head.split() == ["measure", "unit", "runs", "pyvmm", "peer", "ratio", "target", "met"]
    assert beside.split()[-5:] == ["1.00", "<=", "1.2", "x", "yes"]
    assert alone.split()[-5:] == ["-", "-", "<=", "12", "NO"]
    assert clocks == ["", "start: from here to there", "boot: from here to there"]


def test_the_json_file(tmp_path: Path) -> None:
    path = tmp_path / "boot.json"
    report.write_json(str(path), "boot", [BESIDE])
    document = json.loads(path.read_text())
    assert document.keys() == {"bench", "revision", "host", "rows"}
    assert document["bench"] == "boot"
    assert document["rows"] == [BESIDE.as_json()]


def test_rows_are_chosen_by_name() -> None:
    assert boot_rows.select("") == list(boot_rows.ROWS)
    assert boot_rows.select("pio,start") == ["pio", "start"]
    with pytest.raises(BenchError, match="sloth"):
        boot_rows.select("start,sloth")
    assert boot_rows.ROWS.keys() == boot_rows.RUNS.keys()


@pytest.mark.parametrize("work", ["", "READS=7", "LOOPS=7"])
def test_the_tiny_guest_is_a_pvh_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str) -> None:
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    path = tiny.build(work)
    data = Path(path).read_bytes()
    image = elf.parse(memoryview(data), path)
    assert image.pvh_entry == image.entry
    assert (b"\xb9" + struct.pack("<I", 7) in data) == bool(work)  # mov ecx, 7
    assert tiny.build(work) == path
    assert Path(path).stat().st_size < 4096


def test_a_missing_peer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BenchError, match="apt install qemu"):
        qemu.command("kernel", 128)
