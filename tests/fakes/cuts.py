"""Cuts the power of a disk under load, again and again: run as a program, under `dropping.c`.

`python -m tests.fakes.cuts IMAGE ENGINE CACHE SEED CUTS` writes for each cut whether everything the driver was
told is flushed was there.
"""

from __future__ import annotations

import os
import random
import select
import signal
import struct
import sys
import time

from tests.fakes.blk import BlkRig, header
from tests.fakes.driver import Arena
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import RequestType

SECTORS = 64
BATCH = 8  # writes before each flush
_STAMP = struct.Struct("<Q")


def sequence(seed: int) -> random.Random:
    """Which sectors are written, one after the other; the nth write stamps its sector with n."""
    return random.Random(seed)


def load(image: str, engine: str, cache: str, seed: int, told: int) -> None:
    """Write and flush for ever; the number of writes that are flushed goes to the pipe *told*."""
    rig = BlkRig(engine, RawDisk(image, cache=cache))
    rig.driver.start()
    queue, sectors, count = rig.driver.queues[0], sequence(seed), 0
    while True:
        queue.arena = rig.arena = Arena(rig.memory, 0x10_0000, rig.memory_bytes)
        for _ in range(BATCH):
            count += 1
            data = _STAMP.pack(count) * (512 // _STAMP.size)
            request = header(RequestType.OUT, sectors.randrange(SECTORS)) + data
            queue.add([rig.arena.readable(request), rig.arena.writable(1)])
        rig.driver.kick(0)
        rig.collect(BATCH)
        status = rig.arena.writable(1)
        queue.add([rig.arena.readable(header(RequestType.FLUSH)), status])
        rig.driver.kick(0)
        rig.collect()
        assert rig.arena.content(status) == b"\0"
        os.write(told, _STAMP.pack(count))


def survived(image: str, seed: int, flushed: int) -> bool:
    """Whether each sector has the stamp of its last flushed write, or of a later one."""
    safe = [0] * SECTORS
    sectors = sequence(seed)
    for count in range(1, flushed + 1):
        safe[sectors.randrange(SECTORS)] = count
    with open(image, "rb") as file:
        return all(_STAMP.unpack(file.read(512)[: _STAMP.size])[0] >= safe[sector] for sector in range(SECTORS))


def cut(image: str, engine: str, cache: str, seed: int) -> bool:
    """One power failure at a moment that *seed* chooses; whether nothing was lost that must not be."""
    with open(image, "wb") as file:
        file.truncate(SECTORS * 512)
    told, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(told)
        load(image, engine, cache, seed, end)
    os.close(end)
    assert select.select([told], [], [], 30)[0]
    time.sleep(sequence(-seed).random() * 0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    acknowledged = b""
    while piece := os.read(told, 1 << 16):
        acknowledged += piece
    os.close(told)
    return survived(image, seed, _STAMP.unpack(acknowledged[-_STAMP.size :])[0])


if __name__ == "__main__":
    path, engine_name, cache_mode, first, cuts = sys.argv[1:]
    for number in range(int(cuts)):
        print("kept" if cut(path, engine_name, cache_mode, int(first) + number) else "lost")
