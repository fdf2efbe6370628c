"""Plain values come back from their bytes, and nothing else comes of any bytes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.snapshot.codec import decode, encode

PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), 1 << 64) | st.binary() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(PLAIN)
def test_a_value_comes_back(value: object) -> None:
    assert decode(encode(value)) == value


@given(st.binary())
def test_other_bytes_are_a_value_or_refused(data: bytes) -> None:
    with suppress(ValueError):
        decode(data)


@given(PLAIN, st.data())
def test_a_value_that_is_cut_off_is_refused(value: object, data: st.DataObject) -> None:
    whole = encode(value)
    with pytest.raises(ValueError, match=r"."):
        decode(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_depth_is_bounded() -> None:
    with pytest.raises(ValueError, match="too deep"):
        decode(b"l1:" * 100 + b"n")


def test_what_is_no_plain_value_is_not_written() -> None:
    with pytest.raises(TypeError, match="object is no plain value"):
        encode([object()])
