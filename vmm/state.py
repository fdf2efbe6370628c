"""The state of a device as plain values, for snapshots: which attributes make it up, out and back in.

A state is made of numbers, bytes, texts, None, lists and dicts with text keys, so that it can be written anywhere
(`vmm.snapshot.codec`).
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    #: Names and plain values.
    State = dict[str, Any]


def attributes(thing: object, names: tuple[str, ...]) -> State:
    """The attributes *names* of *thing*: numbers, and byte strings of any kind."""
    values = {name: getattr(thing, name) for name in names}
    return {name: bytes(value) if isinstance(value, (bytearray, deque)) else value for name, value in values.items()}


def put_back(thing: object, names: tuple[str, ...], state: State) -> None:
    """Undo `attributes`: byte strings are filled in place, everything else is set.

    Raises:
        ValueError: something is missing, or of another kind than what is there.
    """
    for name in names:
        present, value = getattr(thing, name), state.get(name)
        if isinstance(present, bytearray) and type(value) is bytes:
            present[:] = value
        elif isinstance(present, deque) and type(value) is bytes:
            present.clear()
            present.extend(value)
        elif type(value) is type(present):
            setattr(thing, name, value)
        else:
            raise ValueError(f"{name} is {type(value).__name__}, not {type(present).__name__}")
