"""Every error pyvmm raises, sorted by whose fault it is.

==============  =============================  ==========================================
class           whose fault                    what happens
==============  =============================  ==========================================
`ConfigError`   the user's                     exit code 2, before anything is opened
`HostError`     the host's (kernel, files)     exit code 125, the message says the fix
`GuestFault`    the guest's, one device's      contained: the device asks for reset
==============  =============================  ==========================================

What the guest cannot survive is no error but an `Outcome`. Anything else that is raised is a bug of pyvmm and stops it
loudly.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Never, NoReturn


class VmmError(Exception):
    """Base of all errors that pyvmm raises on purpose: *what* is wrong, *where* (option, path), and how to *fix* it."""

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        text = f"{where}: {what}" if where else what
        super().__init__("\n  ".join([text, *fix.splitlines()]))


class ConfigError(VmmError):
    """What the user asked for cannot be."""


class HostError(VmmError):
    """The host cannot do what is needed; `fix` is what the user can do about it."""


class KvmError(HostError):
    """The ioctl *op* (its kernel name) failed with *errno*."""

    def __init__(self, op: str, errno: int) -> None:
        self.op, self.errno = op, errno
        super().__init__(f"{op} failed: {os.strerror(errno)} (errno {errno})", where="/dev/kvm")


class BackendError(HostError):
    """A host resource behind a device (disk image, tap, terminal) failed."""


class GuestFault(VmmError):
    """The guest broke a device's rules; the device is stopped until the guest resets it."""


class GuestMemoryError(GuestFault):
    """The *size* bytes at guest-physical *gpa* are not (all) guest RAM."""

    def __init__(self, gpa: int, size: int) -> None:
        self.gpa, self.size = gpa, size
        super().__init__(f"no guest RAM at {gpa:#x}+{size:#x}")


def assert_never(value: Never) -> NoReturn:
    """End a `match` over a closed union, as `typing.assert_never`, whose module costs 5 ms at start."""
    raise AssertionError(f"nobody handles {value!r}")
