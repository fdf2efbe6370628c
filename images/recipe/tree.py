"""A file tree in memory, to be written as a cpio archive or an ext4 image."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Node:
    """One file: its path without a leading slash, mode with type bits, data (a symlink's target), device numbers."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class Tree:
    """Files by path; directories above a file are made with it."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def __iter__(self) -> Iterator[Node]:
        """All nodes, each directory before what is in it."""
        return iter(sorted(self._nodes.values(), key=lambda node: node.path.split("/")))

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._add(Node(path, stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._add(Node(path, stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        self._add(Node(path, stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._add(Node(path, stat.S_IFCHR | mode, device=(major, minor)))

    def _add(self, node: Node) -> None:
        parent = node.path.rpartition("/")[0]
        if parent and parent not in self._nodes:
            self.directory(parent)
        self._nodes[node.path] = node
