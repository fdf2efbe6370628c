"""What was measured: rows, as a table and as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measure. *pyvmm* and *peer* are a number per run; *target* is a ratio to the peer or, without one, absolute;
    None for the record.

    It is the most that will do, or where *more_is_better* the least. *clock* says when the clock starts and stops, or
    what else is counted.
    """

    measure: str
    unit: str
    clock: str
    target: float | None
    pyvmm: list[float]
    peer_name: str | None = None
    peer: list[float] | None = None
    more_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """Median of pyvmm to median of the peer."""
        return statistics.median(self.pyvmm) / statistics.median(self.peer) if self.peer else None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached, if there is one."""
        if self.target is None:
            return None
        value = statistics.median(self.pyvmm) if self.ratio is None else self.ratio
        return value >= self.target if self.more_is_better else value <= self.target

    def as_json(self) -> dict[str, Any]:
        """The row in the form that all benches share."""
        return {
            "measure": self.measure,
            "unit": self.unit,
            "runs": len(self.pyvmm),
            "pyvmm": _figures(self.pyvmm),
            "peer_name": self.peer_name,
            "peer": _figures(self.peer) if self.peer else None,
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "target": self.target,
            "met": self.met,
        }


def _figures(samples: list[float]) -> dict[str, float]:
    median = statistics.median(samples)
    return {"median": round(median, 3), "min": round(min(samples), 3), "max": round(max(samples), 3)}


def table(rows: list[Row]) -> str:
    """The rows for a person: median (min … max), and below what each clock does."""
    lines = [("measure", "unit", "runs", "pyvmm", "peer", "ratio", "target", "met")]
    lines += [
        (
            row.measure,
            row.unit,
            str(len(row.pyvmm)),
            _spread(row.pyvmm),
            _spread(row.peer) if row.peer else "-",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            _target(row),
            {True: "yes", False: "NO", None: "-"}[row.met],
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() + "\n" for line in lines
    )
    return text + "\n" + "".join(f"{row.measure}: {row.clock}\n" for row in rows)


def _target(row: Row) -> str:
    if row.target is None:
        return "-"
    return f"{'>=' if row.more_is_better else '<='} {row.target:g}" + ("" if row.ratio is None else " x")


def _spread(samples: list[float]) -> str:
    digits = 0 if min(samples) >= 1000 else 2
    median, least, most = (f"{value:.{digits}f}" for value in (statistics.median(samples), min(samples), max(samples)))
    return f"{median} ({least} … {most})"


def write_json(path: str, bench: str, rows: list[Row]) -> None:
    """Write everything to *path*, in the form that all benches share."""
    document = {"bench": bench, "revision": _revision(), "host": _host(), "rows": [row.as_json() for row in rows]}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2)
        file.write("\n")


def _revision() -> str:
    """The commit measured, with "+" where files of it have been changed; "unknown" outside a git checkout."""
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        done = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _host() -> dict[str, Any]:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    modules = sorted(name for name in os.listdir("/sys/module") if name.startswith("kvm"))
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "kvm": modules,
        "load": round(os.getloadavg()[0], 2),
    }
