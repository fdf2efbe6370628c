"""A writer for `newc` cpio archives, the format of an initrd: no root and no device nodes on the host needed.

Linux, Documentation/driver-api/early-userspace/buffer-format.rst: a header of `070701` and 13 fields of 8 hexadecimal
digits, the name with its NUL, padding to 4 bytes, the data, padding to 4 bytes; the last member is TRAILER!!!.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from .tree import Node

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

TRAILER = "TRAILER!!!"
BLOCK_BYTES = 512


def write_cpio(nodes: Iterable[Node], file: BinaryIO) -> None:
    """Writes `nodes`, each after its directory, owned by root and dated 1970: the same nodes give the same bytes."""
    for number, node in enumerate(nodes, 1):
        _member(file, number, node)
    _member(file, 0, Node(TRAILER, 0))
    file.write(bytes(-file.tell() % BLOCK_BYTES))


def _member(file: BinaryIO, number: int, node: Node) -> None:
    links = 2 if stat.S_ISDIR(node.mode) else 1
    path = node.path.encode() + b"\0"
    data = node.data
    fields = (number, node.mode, 0, 0, links, 0, len(data), 0, 0, *node.device, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    file.write(header + path + bytes(-(len(header) + len(path)) % 4))
    file.write(data + bytes(-len(data) % 4))
