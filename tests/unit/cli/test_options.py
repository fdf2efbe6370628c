"""The option parser: every way to write an option, and what is refused."""

from __future__ import annotations

import pytest

from vmm.cli.options import Option, parse
from vmm.errors import ConfigError

TABLE = (
    Option("kernel", "a file", metavar="FILE", short="k"),
    Option("disk", "a disk", metavar="IMAGE", short="d", repeatable=True),
    Option("cpus", "how many", metavar="N"),
    Option("timeout", "how long", metavar="SECONDS"),
    Option("verbose", "say more", short="v"),
)


@pytest.mark.parametrize("written", [["--kernel", "a=b"], ["--kernel=a=b"], ["-k", "a=b"], ["-ka=b"]])
def test_all_ways_to_give_a_value(written: list[str]) -> None:
    assert parse([*written, "-v"], TABLE).one("kernel") == "a=b"


def test_a_value_may_look_like_an_option_or_be_empty() -> None:
    assert parse(["--kernel", "--verbose"], TABLE).one("kernel") == "--verbose"
    assert parse(["--kernel="], TABLE).one("kernel", "default") == ""


def test_what_is_not_given() -> None:
    options = parse([], TABLE)
    assert not options.has("verbose")
    assert (options.one("kernel", "x"), options.all("disk"), options.seconds("timeout")) == ("x", [], None)


def test_a_repeatable_option_keeps_its_order() -> None:
    assert parse(["-d", "b", "--disk=a", "-dc"], TABLE).all("disk") == ["b", "a", "c"]


def test_numbers() -> None:
    options = parse(["--cpus", "4", "--timeout=1.5"], TABLE)
    assert (options.number("cpus", 1), options.seconds("timeout")) == (4, 1.5)
    assert parse([], TABLE).number("cpus", 1) == 1


@pytest.mark.parametrize("text", ["four", "-1", "1.5", "", "²"])
def test_no_whole_number(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--cpus: .*whole number"):
        parse([f"--cpus={text}"], TABLE).number("cpus", 1)


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "1e9"])
def test_no_number_of_seconds(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--timeout: '{text}' is no number of seconds"):
        parse(["--timeout", text], TABLE).seconds("timeout")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frob"], "--frob: there is no such option"),
        (["vmlinux"], "vmlinux: there is no such option"),
        (["-x"], "-x: there is no such option"),
        (["--"], "--: there is no such option"),
        (["-"], "-: there is no such option"),
        ([""], "there is no such option"),
        (["--ker", "a"], "--ker: there is no such option"),
        (["--kernel"], "--kernel: its value is missing"),
        (["--verbose=1"], "--verbose: takes no value"),
        (["-v1"], "-v: takes no value"),
        (["-k", "a", "--kernel=b"], "--kernel: is given twice"),
    ],
)
def test_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(arguments, TABLE)
    assert str(caught.value).startswith(message)


def test_the_help_fits() -> None:
    assert TABLE[0].describe() == "  -k, --kernel FILE       a file\n"
    assert Option("a-rather-long-option", "help", metavar="X").describe().count("\n") == 2
