"""The kernel command line."""

from __future__ import annotations

import os

from vmm import layout
from vmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.config import MachineConfig

#: What a Linux on x86 takes, without the final NUL (`COMMAND_LINE_SIZE - 1`).
LINUX_MAX = 2047
#: What the layout has room for, without the final NUL.
ROOM = layout.COMMAND_LINE_MAX - 1


def join(added: Iterable[str], user: str) -> str:
    """*user*'s command line after what pyvmm *added*: the kernel lets the later option win, and `--` stays last."""
    return " ".join(part for part in (*added, user.strip()) if part)


def complete(config: MachineConfig, added: Iterable[str]) -> str:
    """The command line of *config*: what pyvmm *added*, where the console and the root disk are, then the user's."""
    options, user = list(added), f" {config.append} "
    if " console=" not in user:
        options += _consoles(config)
    if config.disks and " root=" not in user:
        options.append(f"root=/dev/vda {'ro' if config.disks[0].readonly else 'rw'}")
    return join(options, config.append)


def _consoles(config: MachineConfig) -> list[str]:
    """Where the kernel's messages go; its last console is that of user space."""
    serial = [] if config.serial == "null" else ["console=ttyS0"]
    if config.console == "serial":
        return serial
    if config.serial == "stdio":  # until hvc0 is there: ttyS0 would print all of it on the same terminal once more
        serial = [f"earlycon=uart8250,io,{layout.PORT_COM1:#x}"]
    return [*serial, "console=hvc0"]


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
