"""What the verbs' command lines have in common: operands among the options, help, and two forms of output."""

from __future__ import annotations

import sys

from vmm.cli.options import Option, Options, parse
from vmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FORMAT = Option("format", "how to print it (table)", metavar="table|json")
_HELP = Option("help", "print this", short="h")


def parse_verb(
    verb: str, operands: str, arguments: Sequence[str], table: Sequence[Option]
) -> tuple[list[str], Options] | None:
    """The operands of `pyvmm` *verb*, and its options; None where just help was asked for, and printed.

    *operands* names them: `NAME` one that must be there, `[NAME]` one that may, `NAME…` as many as there are, but one.

    Raises:
        ConfigError: the arguments are not as that says.
    """
    given: list[str] = []
    options = parse(arguments, [*table, _HELP], given)
    if options.has("help"):
        sys.stdout.write(f"usage: pyvmm {verb} {operands}".rstrip() + " [options]\n\n")
        sys.stdout.writelines(option.describe() for option in [*table, _HELP])
        return None
    words = operands.split()
    most = sys.maxsize if operands.endswith("…") else len(words)
    if not sum(not word.startswith("[") for word in words) <= len(given) <= most:
        raise ConfigError(f"takes {operands or 'no names'}", where=f"pyvmm {verb}", fix=f"pyvmm {verb} --help")
    return given, options


def wants_json(options: Options) -> bool:
    """Whether `FORMAT` asks for JSON.

    Raises:
        ConfigError: it asks for something else than a table or JSON.
    """
    form = options.one("format", "table")
    if form not in ("table", "json"):
        raise ConfigError(f"{form!r} is no format", where="--format", fix="table or json")
    return form == "json"
