"""`pyvmm disk`: overlays made, looked at and written back, without a machine."""

from __future__ import annotations

import json
import sys

from vmm.cli.options import Option
from vmm.cli.verb import FORMAT, parse_verb, wants_json
from vmm.config import parse_size
from vmm.errors import ConfigError
from vmm.host.disk.commit import commit, describe
from vmm.host.disk.overlay_file import create

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from vmm.cli.options import Options

#: Of the JSON form; a key may be added under the same number, but none changed or removed.
JSON_VERSION = 1

_USAGE = """\
usage: pyvmm disk VERB OVERLAY [options]

  create   make an overlay over an image, which many may share: --base IMAGE
  info     what is in it, and whether it can be used
  commit   write what is in it into its base

pyvmm disk VERB --help lists a verb's options. A machine has it with: pyvmm … --disk overlay=OVERLAY
"""


def disk(arguments: Sequence[str], say: Callable[[str], None]) -> int:
    """Run `pyvmm disk` with *arguments*; the exit code. *say* tells the user something beside the output."""
    verb, *rest = arguments or ["--help"]
    if verb in ("--help", "-h"):
        sys.stdout.write(_USAGE)
        return 0
    if verb not in _VERBS:
        raise ConfigError("there is no such verb", where=f"pyvmm disk {verb}", fix=f"one of {', '.join(_VERBS)}")
    table, run = _VERBS[verb]
    parsed = parse_verb(f"disk {verb}", "OVERLAY", rest, table)
    if parsed is not None:
        run(parsed[0][0], parsed[1], say)
    return 0


def _create(path: str, options: Options, _: Callable[[str], None]) -> None:
    if not options.has("base"):
        raise ConfigError("over which image?", where=f"pyvmm disk create {path}", fix="--base IMAGE")
    size = parse_size(options.one("size"), "--size") if options.has("size") else None
    create(path, options.one("base"), size_bytes=size, over_overlay=options.has("over-overlay"))


def _info(path: str, options: Options, _: Callable[[str], None]) -> None:
    as_json = wants_json(options)
    facts = describe(path)
    if as_json:
        sys.stdout.write(json.dumps({"version": JSON_VERSION, **facts}, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{name:<10} {value}\n" for name, value in _rows(facts))


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("overlay", facts["path"]),
        ("base", f"{facts['base']} (an overlay)" if facts["base_is_overlay"] else facts["base"]),
        ("size", _mib(facts["size_bytes"])),
        ("own", _mib(facts["own_bytes"])),
        ("on disk", _mib(facts["file_bytes"])),
        ("in use by", facts["in_use_by"] or "nobody"),
        ("usable", f"no: {facts['problem']}" if facts["problem"] else "yes"),
    ]


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _commit(path: str, options: Options, say: Callable[[str], None]) -> None:
    written = commit(path, options.one("base"))
    say(f"{path}: {_mib(written)} written to its base; the overlay is empty now")


#: Each verb's options, and what does it.
_VERBS: dict[str, tuple[tuple[Option, ...], Callable[[str, Options, Callable[[str], None]], None]]] = {
    "create": (
        (
            Option("base", "the image below it", metavar="IMAGE"),
            Option("over-overlay", "the base is an overlay itself"),
            Option("size", "more than the base has (its size)", metavar="SIZE"),
        ),
        _create,
    ),
    "info": ((FORMAT,), _info),
    "commit": ((Option("base", "where the base is now, if not where it was", metavar="IMAGE"),), _commit),
}
