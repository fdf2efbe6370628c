"""Ethernet addresses: six bytes, parsed, printed and made up."""

from __future__ import annotations

from binascii import crc32

from vmm.errors import ConfigError

_FIX = "write six hexadecimal bytes, the first one even, such as 52:54:00:12:34:56"


def parse_mac(text: str, where: str = "mac=") -> bytes:
    """The address written as *text*: six pairs of hexadecimal digits with colons (or hyphens) between them.

    Raises:
        ConfigError: it is not such a text, or not an address one card can have (multicast, or all zeros); *where* is
            the option it came from.
    """
    pairs = text.replace("-", ":").split(":")
    digits = "".join(pairs)
    if [len(pair) for pair in pairs] != [2] * 6 or not set(digits) <= set("0123456789abcdefABCDEF"):
        raise ConfigError(f"{text!r} is not an Ethernet address", where=where, fix=_FIX)
    mac = bytes.fromhex(digits)
    if mac[0] & 1:
        raise ConfigError(f"{text} is a multicast address, which no card can have", where=where, fix=_FIX)
    if not any(mac):
        raise ConfigError(f"{text} is the empty address, which no card can have", where=where, fix=_FIX)
    return mac


def format_mac(mac: bytes) -> str:
    """*mac* as it is usually written: ``52:54:00:12:34:56``."""
    return mac.hex(":")


def default_mac(seed: str) -> bytes:
    """A locally administered address that is always the same for the same *seed*.

    Seeds of equal length that differ only within four adjacent bytes (``…0`` and ``…1``) never share an address: a
    CRC tells them apart for certain.
    """
    return b"\x52\x54" + crc32(seed.encode()).to_bytes(4, "big")
