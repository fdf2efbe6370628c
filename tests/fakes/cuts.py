"""Cuts the power of a disk under load, again and again: run as a program, under `dropping.c`.

An IMAGE that ends in .cow is an overlay.

`python -m tests.fakes.cuts IMAGE ENGINE CACHE SEED CUTS` writes for each cut whether everything the driver was
told is flushed was there.
"""

from __future__ import annotations

import os
import random
import select
import shutil
import signal
import struct
import sys
import time

from tests.fakes.blk import BlkRig, header
from tests.fakes.driver import Arena
from vmm.host.disk.overlay import OverlayDisk, open_overlay
from vmm.host.disk.overlay_file import create
from vmm.host.disk.raw import RawDisk
from vmm.virtio.blk import RequestType

SECTORS = 64
BATCH = 8  # writes before each flush
_STAMP = struct.Struct("<Q")
_FIRST = (1 << 64) - 1


def sequence(seed: int) -> random.Random:
    """Which sectors are written, one after the other; the nth write stamps its sector with n."""
    return random.Random(seed)


def load(image: str, engine: str, cache: str, seed: int, told: int) -> None:
    """Write and flush for ever; the number of writes that are flushed goes to the pipe *told*."""
    rig = BlkRig(engine, open_disk(image, cache))
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
    """Whether each sector has the stamp of its last flushed write, or of a later one; or, if none is, its first one."""
    safe = [0] * SECTORS
    sectors = sequence(seed)
    for count in range(1, flushed + 1):
        safe[sectors.randrange(SECTORS)] = count
    content = bytearray(SECTORS * 512)
    # What `dropping.c` has seen of a file it does not read again: not for us, who see many of them.
    left = shutil.copyfile(image, f"{os.path.dirname(image)}/left.{os.path.basename(image)}")
    disk = open_disk(left, "writeback")
    disk.preadv([memoryview(content)], 0)
    disk.close()
    for sector, least in enumerate(safe):
        data = content[512 * sector : 512 * sector + 512]
        stamp = _STAMP.unpack_from(data)[0]
        whole = data == _STAMP.pack(stamp) * (512 // _STAMP.size)
        if not whole or (least if stamp == _FIRST else stamp < max(1, least)):
            return False
    return True


def make(image: str) -> None:
    """An image with the first stamp everywhere, or an overlay over one, new."""
    raw = image + ".base" if image.endswith(".cow") else image
    with open(raw, "wb") as file:
        file.write(_STAMP.pack(_FIRST) * (SECTORS * 512 // _STAMP.size))
    if raw != image:
        if os.path.exists(image):
            os.unlink(image)
        create(image, raw)


def open_disk(image: str, cache: str) -> RawDisk | OverlayDisk:
    """What `make` has made."""
    return open_overlay(image, cache=cache) if image.endswith(".cow") else RawDisk(image, cache=cache)


def cut(image: str, engine: str, cache: str, seed: int) -> bool:
    """One power failure at a moment that *seed* chooses; whether nothing was lost that must not be."""
    make(image)
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
