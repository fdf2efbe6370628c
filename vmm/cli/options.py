"""The command line's options: a table, and what reads and explains it.

Why not argparse: it and what it imports cost 9 ms, a fifth of the time from process start to the guest's first byte.
"""

from __future__ import annotations

from vmm.config import TIMEOUT_MAX_S
from vmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_HELP_COLUMN = 26


class Option:
    """`--name`, perhaps a one-letter *short* form, and a value shown as *metavar* (none: it is a switch)."""

    __slots__ = ("help", "metavar", "name", "repeatable", "short")

    def __init__(
        self, name: str, help_text: str, *, metavar: str = "", short: str = "", repeatable: bool = False
    ) -> None:
        self.name, self.help, self.metavar, self.short, self.repeatable = name, help_text, metavar, short, repeatable

    def describe(self) -> str:
        """Its lines of the help text."""
        flags = f"  -{self.short}, " if self.short else "      "
        head = f"{flags}--{self.name} {self.metavar}".rstrip()
        gap = " " * (_HELP_COLUMN - len(head)) if len(head) < _HELP_COLUMN - 1 else "\n" + " " * _HELP_COLUMN
        return f"{head}{gap}{self.help}\n"


class Options:
    """What was given: the values of each option, in order; a switch has the value ""."""

    def __init__(self, given: dict[str, list[str]]) -> None:
        self._given = given

    def has(self, name: str) -> bool:
        """Whether the option *name* was given."""
        return name in self._given

    def all(self, name: str) -> list[str]:
        """All values of the repeatable option *name*."""
        return self._given.get(name, [])

    def one(self, name: str, default: str = "") -> str:
        """The value of the option *name*."""
        return self._given.get(name, [default])[0]

    def number(self, name: str, default: int) -> int:
        """The value of the option *name*, a whole number.

        Raises:
            ConfigError: it is none.
        """
        text = self.one(name, str(default))
        if not (text.isascii() and text.isdigit()):
            raise ConfigError(f"{text!r} is no whole number", where=f"--{name}")
        return int(text)

    def seconds(self, name: str) -> float | None:
        """The value of the option *name* in seconds, if it was given.

        Raises:
            ConfigError: it is no number, less than 0, or more than can be waited for.
        """
        if name not in self._given:
            return None
        try:
            value = float(self.one(name))
        except ValueError:
            value = -1
        if not 0 <= value <= TIMEOUT_MAX_S:
            what = f"{self.one(name)!r} is no number of seconds from 0 to {TIMEOUT_MAX_S:.0f}"
            raise ConfigError(what, where=f"--{name}")
        return value


def parse(
    arguments: Sequence[str], table: Sequence[Option], operands: list[str] | None = None, *, command: str = "pyvmm"
) -> Options:
    """Take *arguments* apart: `--name VALUE`, `--name=VALUE`, `-n VALUE`, `-nVALUE`, and switches.

    What is no option is added to *operands*, if there may be any; so is all that comes after `--`. *command* is what
    has the options, for messages.

    Raises:
        ConfigError: one of them is unknown, lacks its value, has one too many, or is given twice.
    """
    known = {f"--{option.name}": option for option in table}
    known |= {f"-{option.short}": option for option in table if option.short}
    given: dict[str, list[str]] = {}
    rest = iter(arguments)
    for argument in rest:
        if operands is not None and argument == "--":
            operands.extend(rest)
            break
        if operands is not None and not argument.startswith("-"):
            operands.append(argument)
            continue
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
        else:
            flag, value = argument[:2], argument[2:]
            equals = value
        option = known.get(flag)
        if option is None:
            raise ConfigError("there is no such option", where=argument, fix=f"{command} --help lists them all")
        if not option.metavar:
            if equals:
                raise ConfigError("takes no value", where=flag)
        elif not equals:
            following = next(rest, None)
            if following is None:
                raise ConfigError("its value is missing", where=flag, fix=f"{flag} {option.metavar}")
            value = following
        values = given.setdefault(option.name, [])
        if values and option.metavar and not option.repeatable:
            raise ConfigError("is given twice", where=flag)
        values.append(value)
    return Options(given)
