"""The kernel command line."""

from __future__ import annotations

import os

from vmm import layout
from vmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: What a Linux on x86 takes, without the final NUL (`COMMAND_LINE_SIZE - 1`).
LINUX_MAX = 2047
#: What the layout has room for, without the final NUL.
ROOM = layout.COMMAND_LINE_MAX - 1


def join(added: Iterable[str], user: str) -> str:
    """*user*'s command line after what pyvmm *added*: the kernel lets the later option win, and `--` stays last."""
    return " ".join(part for part in (*added, user.strip()) if part)


def encode(text: str, limit: int) -> bytes:
    """*text* as the NUL-terminated string that the kernel reads, at most *limit* bytes without the NUL.

    Raises: `ConfigError` where it is longer or has a NUL inside.
    """
    data = os.fsencode(text)
    if b"\0" in data:
        raise ConfigError("the kernel command line has a NUL character in it", where="--append", fix="remove it")
    if len(data) > limit:
        raise ConfigError(
            f"the kernel command line is {len(data)} bytes long, this kernel takes {limit}",
            where="--append",
            fix=f"shorten it by {len(data) - limit} bytes",
        )
    return data + b"\0"
