from __future__ import annotations

import functools
import random
import struct
import tracemalloc
from pathlib import Path

import pytest

from tests.fakes import kernels
from vmm.boot import decompress
from vmm.errors import ConfigError

DATA = random.Random(1).randbytes(300_000) + b"kernel" * 30_000
MIB = 1 << 20


@functools.cache
def packed(compression: str) -> bytes:
    return kernels.payload(compression, DATA)


def unpack(payload: bytes, name: str) -> bytes:
    return bytes(decompress.unpack(memoryview(payload), name, "bzImage"))


@pytest.mark.parametrize("compression", kernels.COMPRESSIONS)
def test_every_compression_is_recognised_and_unpacked(compression: str) -> None:
    payload = packed(compression)
    assert decompress.method(memoryview(payload)) == compression
    assert unpack(payload, compression) == DATA


def test_lz4_of_several_blocks() -> None:
    data = b"0123456789abcdef" * (20 << 16)  # 20 MiB: two full blocks and a short one
    assert unpack(kernels.payload("lz4", data), "lz4") == data


def test_lz4_of_exactly_one_block() -> None:
    data = bytes(8 << 20)
    assert unpack(kernels.payload("lz4", data), "lz4") == data


def test_unknown_compression_is_no_method() -> None:
    assert decompress.method(memoryview(b"\x89LZO\x00 and so on")) is None
    assert decompress.method(memoryview(b"")) is None


@pytest.mark.parametrize("compression", kernels.COMPRESSIONS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.95])
def test_truncated(compression: str, keep: float) -> None:
    payload = packed(compression)
    cut = payload[: int(len(payload) * keep)] + payload[-4:]
    with pytest.raises(ConfigError, match=r"bzImage: .* is corrupt"):
        unpack(cut, compression)


@pytest.mark.parametrize("compression", kernels.COMPRESSIONS)
@pytest.mark.parametrize("lie", [-1, 1])
def test_wrong_size(compression: str, lie: int) -> None:
    payload = packed(compression)[:-4] + struct.pack("<I", len(DATA) + lie)
    with pytest.raises(ConfigError, match="is corrupt"):
        unpack(payload, compression)


@pytest.mark.parametrize("size", [0, decompress.UNPACKED_MAX + 1, 0xFFFF_FFFF])
def test_size_out_of_bounds(size: int) -> None:
    with pytest.raises(ConfigError, match=f"claims to unpack to {size} bytes"):
        unpack(kernels.payload("lz4", DATA)[:-4] + struct.pack("<I", size), "lz4")


@pytest.mark.parametrize("compression", kernels.COMPRESSIONS)
def test_a_bomb_stops_at_the_size_that_it_claims(compression: str) -> None:
    bomb = kernels.payload(compression, bytes(40 * MIB))[:-4] + struct.pack("<I", MIB)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match="is corrupt"):
            unpack(bomb, compression)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * MIB


@pytest.mark.parametrize("compression", kernels.COMPRESSIONS)
def test_a_claim_costs_nothing(compression: str) -> None:
    payload = packed(compression)[:-4] + struct.pack("<I", decompress.UNPACKED_MAX)
    before = resident()
    with pytest.raises(ConfigError, match="is corrupt") as caught:
        unpack(payload, compression)
    assert resident() - before < 32 * MIB  # while the traceback keeps the output alive
    assert caught.tb


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_lz4_short_block_in_the_middle() -> None:
    block = kernels.payload("lz4", b"short")[4:-4]
    payload = b"\x02\x21\x4c\x18" + block + block + struct.pack("<I", 10)
    with pytest.raises(ConfigError, match="a short block is not the last"):
        unpack(payload, "lz4")
