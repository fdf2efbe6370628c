"""`pyvmm run --detach`: a VM in the background."""

from __future__ import annotations

import os
import sys

from vmm.api.place import LOG
from vmm.cli.main import EXIT_HOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.api.place import Place


def detached(run: Callable[[Callable[[Place], None]], int]) -> int:
    """Call *run* in a process of its own, and print the VM's name once its guest runs; the exit code.

    *run* calls what it is given when that is so. Until then the process has the caller's stderr for its errors, and its
    exit code is ours; from then on what it has to say is in the VM's log.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        return _in_background(run, writer)
    os.close(writer)
    with open(reader, encoding="ascii") as channel:
        name = channel.read()
    if name:
        sys.stdout.write(f"{name}\n")
        return 0
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code if code >= 0 else EXIT_HOST


def _in_background(run: Callable[[Callable[[Place], None]], int], writer: int) -> int:
    def started(place: Place) -> None:
        _put(os.open(place.file(LOG), os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), 2)
        os.write(writer, place.name.encode())
        os.close(writer)

    os.setsid()
    _put(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 0, 1)
    return run(started)


def _put(fd: int, *standard: int) -> None:
    for number in standard:
        os.dup2(fd, number)
    os.close(fd)
