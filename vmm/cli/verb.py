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
    options = parse(arguments, [*table, _HELP], given, command=f"pyvmm {verb}")
    if options.has("help"):
        sys.stdout.write(f"usage: pyvmm {verb} {operands}".rstrip() + " [options]\n\n")
        sys.stdout.writelines(option.describe() for option in [*table, _HELP])
        return None
    words = operands.split()
    most = sys.maxsize if operands.endswith("…") else len(words)
    if not sum(not word.startswith("[") for word in words) <= len(given) <= most:
        raise ConfigError(f"takes {operands or 'no names'}", where=f"pyvmm {verb}", fix=f"pyvmm {verb} --help")
    return given, options


def wants_json(options: Options, plain: str = "table") -> bool:
    """Whether `--format` asks for JSON, and not for what is *plain*.

    Raises:
        ConfigError: it asks for something else.
    """
    form = options.one("format", plain)
    if form not in (plain, "json"):
        raise ConfigError(f"{form!r} is no format", where="--format", fix=f"{plain} or json")
    return form == "json"
