"""The benches' own parts: the form of their figures, turns, and their guests."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from bench import boot_rows, exit_rows, guests, io_rows, linux_rows, qemu, report, timed
from bench.command import Bench, in_turn
from bench.errors import BenchError
from bench.report import Row
from bench.timed import Timed
from vmm.boot import elf

BESIDE = Row("start", "ms", "from here to there", 1.2, [3.0, 1.0, 2.0], "QEMU 7.2", [2.0, 1.0, 4.0])
ALONE = Row("boot", "s", "from here to there", 12, [13.0, 12.5])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("PYVMM_CACHE", str(tmp_path))
    return tmp_path


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


def test_what_is_best_when_there_is_most_of_it() -> None:
    row = Row("reads", "1/s", "from here to there", 1.5, [300_000.0], "QEMU 7.2", [200_000.0], more_is_better=True)
    assert row.met
    assert not Row("reads", "1/s", "", 1.5, [290_000.0], "QEMU 7.2", [200_000.0], more_is_better=True).met
    line = report.table([row]).splitlines()[1]
    assert line.split()[-5:] == ["1.50", ">=", "1.5", "x", "yes"]
    assert "300000 (300000 … 300000)" in line


def test_a_row_for_the_record_has_no_target() -> None:
    row = Row("reads", "1/s", "from here to there", None, [300_000.0])
    assert row.as_json()["target"] is None
    assert row.as_json()["met"] is None
    assert report.table([row]).splitlines()[1].split()[-4:] == ["-", "-", "-", "-"]


def test_rows_are_chosen_by_name() -> None:
    bench = Bench("boot", "", boot_rows.ROWS, boot_rows.RUNS)
    assert bench.select("") == list(boot_rows.ROWS)
    assert bench.select("pio,start") == ["pio", "start"]
    with pytest.raises(BenchError, match="sloth"):
        bench.select("start,sloth")


@pytest.mark.parametrize("rows", [boot_rows, io_rows, linux_rows])
def test_every_row_has_its_number_of_runs(rows: ModuleType) -> None:
    assert rows.ROWS.keys() == rows.RUNS.keys()


def test_the_sides_take_turns_and_the_first_turn_does_not_count() -> None:
    commands: list[Sequence[str]] = []

    def measure(command: Sequence[str]) -> int:
        commands.append(command)
        return len(commands)

    assert in_turn("row", 2, [["a"], ["b"]], measure) == [[3, 5], [4, 6]]
    assert commands == [["a"], ["b"]] * 3


@pytest.mark.parametrize("work", ["", "READS=7", "LOOPS=7"])
def test_the_tiny_guest_is_a_pvh_kernel(cache: Path, work: str) -> None:
    path = guests.tiny(work)
    data = Path(path).read_bytes()
    image = elf.parse(memoryview(data), path)
    assert image.pvh_entry == image.entry
    assert (b"\xb9" + struct.pack("<I", 7) in data) == bool(work)  # mov ecx, 7
    assert guests.tiny(work) == path
    assert Path(path).stat().st_size < 4096
    assert Path(path).parent == cache / "bench"


def test_the_io_guest_is_a_pvh_kernel(cache: Path) -> None:
    path = guests.io()
    image = elf.parse(memoryview(Path(path).read_bytes()), path)
    assert image.pvh_entry == image.entry
    assert guests.io() == path


def test_what_the_guest_answers() -> None:
    run = Timed(2.0, 0.5, timed.parse_answer("requests=1000 ticks=5200000000"), frames=0, bytes=0)
    assert run.answer == {"requests": 1000, "ticks": 5_200_000_000}
    assert run.rate("requests") == 500
    assert run.cpu_us("requests") == 500


def test_a_guest_is_timed_by_its_two_bytes() -> None:
    run = timed.run(["sh", "-c", "printf B; sleep 0.2; printf E; sleep 0.1; echo; echo done frames=7 ticks=1"])
    assert run.answer == {"frames": 7, "ticks": 1}
    assert 0.2 <= run.seconds < 0.3


def test_a_guest_that_must_wait_is_told_when() -> None:
    calls: list[str] = []
    guest = ["sh", "-c", "printf R; read key; printf BE; echo; echo done frames=7"]
    assert timed.run(guest, when_ready=lambda: calls.append("ready")).answer == {"frames": 7}
    assert calls == ["ready"]


def test_a_guest_that_fails_is_not_measured() -> None:
    with pytest.raises(BenchError, match="there is no such device"):
        timed.run(["sh", "-c", "echo; echo failed: there is no such device; sleep 9"])


def test_the_kernel_s_own_memory() -> None:
    text = "MemFree: 9999 kB\nSlab: 1024 kB\nSReclaimable: 512 kB\nSecPageTables: 512 kB\nHugePages_Total: 3\n"
    assert exit_rows.kernel_memory_mib(text) == 1.5


def test_a_missing_peer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BenchError, match="apt install qemu"):
        qemu.command("kernel", 128)
