"""The one gate to `ioctl`.

`fcntl.ioctl` will not do: its argument is a signed C int, and from CPython 3.14 on it retries EINTR by itself, which
would swallow the kick of a vCPU. ctypes drops the GIL for the call.
"""

from __future__ import annotations

import ctypes

from vmm.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
#: `ioctl(fd, request, argument)` -> result, or -1 with `ctypes.get_errno()`.
raw_ioctl = _libc.ioctl
raw_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
raw_ioctl.restype = ctypes.c_int
#: The same for `KVM_RUN`, whose three arguments fit a C int: undeclared types save 0.15 us of each exit.
run_ioctl = _libc["ioctl"]
_signal = _libc.signal
_signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_signal.restype = ctypes.c_void_p


def on_signal(number: int) -> None:
    """Let signal *number* interrupt an `ioctl` and do nothing else, in every thread; any thread may call this.

    It needs a handler, or its default action ends the process. Python's can only be installed in the main thread and
    would run there; blocking the signal but for `KVM_RUN` (KVM_SET_SIGNAL_MASK) costs 0.3 us of each exit. So it is a
    C function that takes an int and touches nothing: `abs`.
    """
    _signal(number, ctypes.cast(_libc.abs, ctypes.c_void_p))


def ioctl(op: str, fd: int, request: int, argument: Any = 0) -> int:
    """`ioctl` *request* on *fd*; *argument* is an integer or a ctypes object (passed by reference).

    Raises:
        KvmError: named by *op*, the request's kernel name.
    """
    pointer = argument if isinstance(argument, int) else ctypes.byref(argument)
    result: int = raw_ioctl(fd, request, pointer)
    if result < 0:
        raise KvmError(op, ctypes.get_errno())
    return result
