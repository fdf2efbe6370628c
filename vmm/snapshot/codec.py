"""Plain values as bytes and back: numbers, bytes, texts, None, truth, lists, and dicts with text keys.

======  ==========================================================
first   then
======  ==========================================================
`n`     nothing: None
`t` `f` nothing: True, False
`i`     a decimal number, `;`
`b` `s` a length in bytes, `:`, bytes or UTF-8
`l`     a count, `:`, so many values
`d`     a count, `:`, so many pairs of a text and a value
======  ==========================================================

Why not marshal or pickle: a file from elsewhere must not be able to do anything.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_DEPTH_MAX = 32
_DIGITS_MAX = 40
_NAMED = {None: b"n", True: b"t", False: b"f"}
_NAMES = {name[0]: value for value, name in _NAMED.items()}


def encode(value: Any) -> bytes:
    """*value* as bytes.

    Raises:
        TypeError: it is no plain value.
    """
    if value is None or isinstance(value, bool):
        return _NAMED[value]
    if isinstance(value, int):
        return b"i%d;" % value
    if isinstance(value, bytes):
        return b"b%d:%b" % (len(value), value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        return b"s%d:%b" % (len(data), data)
    if isinstance(value, list):
        return b"l%d:%b" % (len(value), b"".join(map(encode, value)))
    if isinstance(value, dict):
        pairs = (encode(key) + encode(item) for key, item in value.items())
        return b"d%d:%b" % (len(value), b"".join(pairs))
    raise TypeError(f"{type(value).__name__} is no plain value")


def decode(data: bytes) -> Any:
    """The value that *data* is.

    Raises:
        ValueError: it is none.
    """
    value, end = _decode(data, 0, _DEPTH_MAX)
    if end != len(data):
        raise ValueError("there is something behind the value")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """The value that begins at *at*, and where it ends."""
    kind = data[at : at + 1]
    if not kind or not depth:
        raise ValueError("a value is missing, or lies too deep")
    if kind[0] in _NAMES:
        return _NAMES[kind[0]], at + 1
    number, at = _number(data, at + 1, b";" if kind == b"i" else b":")
    if kind == b"i":
        return number, at
    if not 0 <= number <= len(data) - at:
        raise ValueError("more is announced than there is")
    if kind == b"b":
        return data[at : at + number], at + number
    if kind == b"s":
        return data[at : at + number].decode("utf-8", "surrogateescape"), at + number
    items = []
    if kind not in (b"l", b"d"):
        raise ValueError(f"{kind!r} begins no value")
    for _ in range(number if kind == b"l" else 2 * number):
        item, at = _decode(data, at, depth - 1)
        items.append(item)
    if kind == b"l":
        return items, at
    if not all(isinstance(key, str) for key in items[::2]):
        raise ValueError("a key is no text")
    return dict(zip(items[::2], items[1::2], strict=True)), at


def _number(data: bytes, at: int, end: bytes) -> tuple[int, int]:
    stop = data.find(end, at, at + _DIGITS_MAX)
    if stop < 0:
        raise ValueError("a number does not end")
    return int(data[at:stop]), stop + 1
