"""`pyvmm ps` and `pyvmm info`: the running VMs."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from vmm.api.client import Client, NoAnswer, NoSuchVm
from vmm.api.place import pid_of, running
from vmm.cli.verb import FORMAT, parse_verb, wants_json
from vmm.config import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Of the JSON forms; a key may be added under the same number, but none changed or removed.
JSON_VERSION = 1
#: A VM that takes longer to answer is shown without.
_PATIENCE_S = 2.0


def ps(arguments: Sequence[str], _say: Callable[[str], None]) -> int:
    """Run `pyvmm ps` with *arguments*; the exit code."""
    parsed = parse_verb("ps", "", arguments, (FORMAT,))
    if parsed is None:
        return 0
    found = list(statuses())
    if wants_json(parsed[1]):
        sys.stdout.write(json.dumps({"version": JSON_VERSION, "vms": found}, indent=2) + "\n")
    else:
        sys.stdout.write(render_table(found))
    return 0


def info(arguments: Sequence[str], _say: Callable[[str], None]) -> int:
    """Run `pyvmm info` with *arguments*; the exit code."""
    parsed = parse_verb("info", "NAME", arguments, (FORMAT,))
    if parsed is None:
        return 0
    (name,), options = parsed
    as_json = wants_json(options)
    with Client(name) as client:
        told = client.request("status")
    if as_json:
        sys.stdout.write(json.dumps({"version": JSON_VERSION, "vm": told}, indent=2) + "\n")
    else:
        sys.stdout.write(render_info(told))
    return 0


def statuses() -> Iterator[dict[str, Any]]:
    """What each running VM says of itself; of one that does not answer, its name and process."""
    for name in running():
        try:
            with Client(name, timeout_s=_PATIENCE_S) as client:
                yield client.request("status")
        except NoSuchVm:
            continue  # it has ended meanwhile
        except NoAnswer:
            yield {"name": name, "state": "no answer", "pid": pid_of(name)}


def render_table(found: Sequence[dict[str, Any]]) -> str:
    """A line for each VM, under headings."""
    rows = [("NAME", "PID", "STATE", "UP", "CPUS", "MEMORY", "KERNEL")]
    rows += [
        (
            vm["name"],
            str(vm["pid"] or "?"),
            vm["state"],
            _duration(vm["uptime_s"]) if "uptime_s" in vm else "",
            str(vm.get("cpus", "")),
            f"{vm['memory_bytes'] // MIB} MiB" if "memory_bytes" in vm else "",
            vm.get("kernel", ""),
        )
        for vm in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


def render_info(told: dict[str, Any]) -> str:
    """A line for each thing that is *told*."""
    shown = told | {"uptime": _duration(told["uptime_s"]), "memory": f"{told['memory_bytes'] // MIB} MiB"}
    lines = {name: value for name, value in shown.items() if value and name not in ("uptime_s", "memory_bytes")}
    width = max(map(len, lines))
    return "".join(
        f"{name:{width}}  {', '.join(value) if isinstance(value, list) else value}\n" for name, value in lines.items()
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"
