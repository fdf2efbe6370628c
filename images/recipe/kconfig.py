"""Configurations as the kernel and busybox write them."""

from __future__ import annotations

from .errors import RecipeError


def parse_config(text: str) -> dict[str, str]:
    """Options and values of a configuration; an option that `is not set` has the value `n`."""
    options = {}
    for line in map(str.strip, text.splitlines()):
        if line.startswith("CONFIG_"):
            name, _, value = line.partition("=")
            options[name] = value
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            options[line.split()[1]] = "n"
    return options


def read_config(path: str) -> dict[str, str]:
    with open(path) as file:
        return parse_config(file.read())


def check_config(wanted: dict[str, str], result: dict[str, str], fragment: str) -> None:
    """Raises: RecipeError naming every option of `fragment` (a file) that did not come out as wanted."""
    wrong = [
        f"  {name}: wanted {value}, is {result.get(name, 'n')}"
        for name, value in wanted.items()
        if result.get(name, "n") != value
    ]
    if wrong:
        raise RecipeError(
            f"these options of {fragment} did not come out as written; their dependencies say why:\n" + "\n".join(wrong)
        )
