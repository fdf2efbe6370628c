"""Ethernet addresses."""

from __future__ import annotations

import pytest

from vmm.errors import ConfigError
from vmm.mac import default_mac, format_mac, parse_mac


@pytest.mark.parametrize("text", ["52:54:00:ab:CD:ef", "52-54-00-AB-cd-ef"])
def test_parse(text: str) -> None:
    assert parse_mac(text) == b"\x52\x54\x00\xab\xcd\xef"


def test_format_is_what_parse_reads() -> None:
    assert format_mac(b"\x52\x54\x00\xab\xcd\xef") == "52:54:00:ab:cd:ef"


@pytest.mark.parametrize(
    "text",
    ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:01", "525400abcdef", "52:54:00:ab:cd:e", "5 :54:00:ab:cd:ef",
     "52:54:00:ab:cd:eg", "+5:54:00:ab:cd:ef", "52:54:00:ab:cd:ef ", "52:54:00:ab:cd:\u0665\u0665"],
)  # fmt: skip
def test_not_an_address(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mac(text, "--net mac=")
    assert str(caught.value) == (
        f"--net mac=: {text!r} is not an Ethernet address\n"
        "  write six hexadecimal bytes, the first one even, such as 52:54:00:12:34:56"
    )


def test_multicast_is_refused() -> None:
    with pytest.raises(ConfigError, match="53:54:00:00:00:01 is a multicast address, which no card can have"):
        parse_mac("53:54:00:00:00:01")


def test_zeros_are_refused() -> None:
    with pytest.raises(ConfigError, match="the empty address"):
        parse_mac("00:00:00:00:00:00")


def test_default_is_stable_local_and_unicast() -> None:
    assert default_mac("host:pyvmm0") == default_mac("host:pyvmm0")
    assert len(default_mac("")) == 6
    assert default_mac("host:pyvmm0")[0] & 3 == 2


def test_neighbouring_seeds_differ() -> None:
    assert len({default_mac(f"host:{index:04}") for index in range(10_000)}) == 10_000
