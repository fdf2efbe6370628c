"""What all benches do alike: options, turns, the table."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, TypeVar

from bench import pyvmm, qemu, report
from bench.errors import BenchError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.report import Row

    _Rows = Mapping[str, Callable[[int], Sequence[Row]]]

Sample = TypeVar("Sample")


class Bench:
    """`bench/NAME`: *rows* are measured by name, each *runs[name]* times unless the user says otherwise.

    *linux* are those that `--linux` measures instead.
    """

    def __init__(self, name: str, about: str, rows: _Rows, runs: Mapping[str, int], linux: _Rows | None = None) -> None:
        self._name, self._rows, self._runs, self._linux = name, rows, runs, linux or {}
        parser = argparse.ArgumentParser(prog=f"bench/{name}", description=about)
        parser.add_argument("--only", default="", metavar="ROW[,…]", help=f"measure just these of {', '.join(rows)}")
        runs_help = ", ".join(f"{row} {number}" for row, number in runs.items())
        parser.add_argument("--runs", type=int, metavar="N", help=f"runs of each row ({runs_help})")
        parser.add_argument("--json", metavar="FILE", help="write the figures to FILE as well")
        parser.add_argument("--engine", metavar="ENGINE", help="pyvmm's --engine, as it is unless given")
        parser.set_defaults(linux=False)
        if linux:
            parser.add_argument(
                "--linux", action="store_true", help=f"measure {', '.join(linux)} in a Linux guest instead"
            )
        self._parser = parser

    def select(self, names: str) -> list[str]:
        """The rows named in *names*, comma-separated; all if it is empty. Raises `BenchError` for an unknown one."""
        chosen = [name for name in names.split(",") if name] or list(self._rows)
        unknown = [name for name in chosen if name not in self._rows]
        if unknown:
            raise BenchError(f"there is no row {', '.join(unknown)}", fix=f"--only takes {', '.join(self._rows)}")
        return chosen

    def main(self) -> int:
        """Measure and print; 0 if everything could be measured, whatever the figures."""
        arguments = self._parser.parse_args()
        if arguments.runs is not None and arguments.runs < 1:
            self._parser.error("--runs must be at least 1")
        pyvmm.options += ["--engine", arguments.engine] if arguments.engine else []
        if arguments.linux:
            self._rows = self._linux
        try:
            chosen = self.select(arguments.only)
            rows = [row for name in chosen for row in self._rows[name](arguments.runs or self._runs[name])]
        except BenchError as error:
            print(f"bench/{self._name}: {error}", file=sys.stderr)
            return 1
        print(report.table(rows))
        if any(row.peer_name and row.peer_name.startswith("QEMU") for row in rows):
            print(f"peer: {qemu.version()}, {' '.join(qemu.FLAGS)}; the rest of its flags: bench/qemu.py")
        if arguments.json:
            report.write_json(arguments.json, self._name, rows)
        return 0


def in_turn(
    name: str, runs: int, commands: Sequence[Sequence[str]], measure: Callable[[Sequence[str]], Sample]
) -> list[list[Sample]]:
    """*measure* of each of *commands* in turn, *runs* times, after one uncounted turn that fills the caches."""
    samples: list[list[Sample]] = [[] for _ in commands]
    for turn in range(runs + 1):
        say(f"{name}: {turn} of {runs}")
        for command, own in zip(commands, samples, strict=True):
            sample = measure(command)
            if turn:
                own.append(sample)
    return samples


def say(text: str) -> None:
    """Tell the user how far it is."""
    print(f"bench: {text}", file=sys.stderr)
