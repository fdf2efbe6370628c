"""`pyvmm doctor`: what of this host pyvmm needs or can use, and how to mend what is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

from vmm.cli.verb import FORMAT, parse_verb, wants_json
from vmm.host.doctor import HOST_CHECKS, Row
from vmm.kvm.doctor import check_kvm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Of the JSON form; a key may be added under the same number, but none changed or removed.
JSON_VERSION = 1

EXIT_OK = 0
EXIT_NO_VMS = 1


def rows() -> Iterator[Row]:
    """Try everything, one row after the other as it is known."""
    yield from check_kvm()
    for check in HOST_CHECKS:
        yield check()


def main(arguments: Sequence[str], _say: Callable[[str], None]) -> int:
    """Run `pyvmm doctor` with *arguments*; the exit code."""
    parsed = parse_verb("doctor", "", arguments, (FORMAT,))
    return doctor(sys.stdout, as_json=wants_json(parsed[1])) if parsed else EXIT_OK


def doctor(output: TextIO, *, as_json: bool) -> int:
    """Print all findings to *output*; the exit code: 0 if VMs can run here, or 1."""
    found = list(rows())
    output.write(render_json(found) if as_json else render_table(found))
    return EXIT_OK if can_run(found) else EXIT_NO_VMS


def can_run(found: Sequence[Row]) -> bool:
    """Whether VMs can run: all that is needed works."""
    return all(row.status == "ok" for row in found if row.need == "needed")


def render_json(found: Sequence[Row]) -> str:
    """The findings as one JSON object."""
    checks = [asdict(row) for row in found]
    return json.dumps({"version": JSON_VERSION, "can_run": can_run(found), "checks": checks}, indent=2) + "\n"


def render_table(found: Sequence[Row]) -> str:
    """The findings as a table, with what mends each failure under it, and the verdict."""
    width = max(len(row.name) for row in found)
    lines = []
    for row in found:
        lines.append(f"{row.status:6}  {row.need}  {row.name:{width}}  {row.seen}")
        lines += [" " * (18 + width) + line for line in row.fix.splitlines()]
    failed = [row.name for row in found if row.need == "needed" and row.status != "ok"]
    lines.append("")
    lines.append(f"VMs cannot run here: {', '.join(failed)}" if failed else "VMs can run here.")
    return "\n".join(lines) + "\n"
