"""Where a running VM is: the directory `root()/NAME`, the user's own, which comes and goes with the VM.

==============  ================================================================
file            what it is
==============  ================================================================
`lock`          locked by the VM's process for its life: so live is told from stale
`info.json`     who it is: name, process, version
`control.sock`  requests, as in docs/control.md
`console.sock`  what the guest prints, for anybody to watch and to type
`vsock.sock`    the guest's virtio-vsock, where it has one
`log`, `log.1`  what the guest printed, and before that
==============  ================================================================

The lock is of the open file description (`F_OFD_SETLK`, fcntl(2)): it goes with the process, however that ends, and can
be asked for (`F_OFD_GETLK`) without being taken. Whoever takes the directory away holds it, so a directory that was
opened may be gone when its lock is had: then it is made anew.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import time
from itertools import count

from vmm import __version__
from vmm.errors import BackendError, ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK, INFO, CONTROL, CONSOLE, LOG = "lock", "info.json", "control.sock", "console.sock", "log"
NAME_MAX = 63
_NAME_REST = "_.-"
#: The directory of the lans is beside those of VMs.
_RESERVED = frozenset({"lan"})
#: struct sockaddr_un, with the terminator; and the longest name of a socket here.
_PATH_MAX, _SOCKET_MAX = 107, len(CONSOLE)
#: struct flock: l_type, l_whence, l_start, l_len, l_pid. The whole file; of l_pid the kernel wants 0.
_FLOCK = struct.Struct("hhqqi4x")
#: Somebody who cleans up holds a lock only for a moment.
_PATIENCE_S, _AGAIN_S = 0.2, 0.01


class Place:
    """The directory *path* of the running VM *name*, which this process has claimed until `release`."""

    def __init__(self, name: str, path: str, lock: int) -> None:
        self.name, self.path = name, path
        self._lock = lock

    def file(self, name: str) -> str:
        """The path of the file *name* in the directory."""
        return os.path.join(self.path, name)

    def release(self) -> None:
        """Take the directory away with all that is in it, and give the name back."""
        try:
            _empty(self.path)
            os.unlink(self.file(LOCK))
            os.rmdir(self.path)
        except OSError:
            pass  # somebody has claimed it since, or taken it away, or put a directory there
        os.close(self._lock)


def root() -> str:
    """Where the directories of this user's VMs are: $PYVMM_RUN, or in a runtime directory of the user's own.

    Raises:
        BackendError: it is in /tmp, and somebody else's.
    """
    own = os.environ.get("PYVMM_RUN")
    if own:
        return own
    user = os.geteuid()
    for runtime in (os.environ.get("XDG_RUNTIME_DIR"), f"/run/user/{user}"):
        # After `su` XDG_RUNTIME_DIR is still the other user's.
        if runtime and os.path.isdir(runtime) and os.stat(runtime).st_uid == user:
            return os.path.join(runtime, "pyvmm")
    path = f"/tmp/pyvmm-{user}"  # noqa: S108
    if os.path.lexists(path):
        _check_own(path)
    return path


def directory(name: str) -> str:
    """The directory of the VM *name*, which need not run.

    Raises:
        ConfigError: no VM can have that name.
    """
    fits = 1 <= len(name) <= NAME_MAX and name.isascii() and name[0].isalnum()
    if not fits or not all(c.isalnum() or c in _NAME_REST for c in name) or name in _RESERVED:
        raise ConfigError(
            f"{name!r} cannot be the name of a VM",
            where="--name",
            fix=f"1 to {NAME_MAX} letters, digits, dots, hyphens and underscores, a letter or digit first; not lan",
        )
    return os.path.join(root(), name)


def claim(name: str = "") -> Place:
    """Make the directory of the VM *name*, or of the first free `vm-N`, for this process.

    Raises:
        ConfigError: the name cannot be, or is that of a running VM.
        BackendError: the directory cannot be made.
    """
    if not name:
        return next(filter(None, map(_take, (f"vm-{number}" for number in count(1)))))
    deadline = time.monotonic() + _PATIENCE_S
    while (place := _take(name)) is None:
        if time.monotonic() > deadline:
            pid = pid_of(name)
            raise ConfigError(
                f"a VM of that name is running{f', process {pid}' if pid else ''}",
                where=f"--name {name}",
                fix="choose another; pyvmm ps lists them",
            )
        time.sleep(_AGAIN_S)
    return place


def is_live(name: str) -> bool:
    """Whether the VM *name* is running."""
    try:
        lock = os.open(os.path.join(directory(name), LOCK), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(lock)
    return bool(_FLOCK.unpack(asked)[0] != fcntl.F_UNLCK)


def running() -> list[str]:
    """The names of this user's running VMs, sorted. What VMs that were killed have left is taken away."""
    return sorted(_running())


def pid_of(name: str) -> int | None:
    """The process that has claimed *name*; None while it is about to say so, or if there is none."""
    import json

    if not is_live(name):  # what is written may be another process by now
        return None
    try:
        with open(os.path.join(directory(name), INFO), encoding="ascii") as file:
            return int(json.load(file)["pid"])
    except (OSError, ValueError):
        return None


def _running() -> Iterator[str]:
    try:
        found = os.listdir(root())
    except FileNotFoundError:
        return
    for name in found:
        if not os.path.exists(os.path.join(root(), name, LOCK)) or name in _RESERVED:
            continue
        if is_live(name):
            yield name
        elif (place := _take(name)) is not None:
            place.release()


def _take(name: str) -> Place | None:
    """Claim *name*; None if somebody else has it."""
    path = directory(name)
    if len(os.fsencode(path)) + 1 + _SOCKET_MAX > _PATH_MAX:
        raise ConfigError(f"{path} is too long for sockets in it", where="--name", fix="set PYVMM_RUN to a shorter one")
    try:
        while True:
            try:
                _make_directory(os.path.dirname(path))
                _make_directory(path)
                lock = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # released since
                continue
            try:
                fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
            except BlockingIOError:
                os.close(lock)
                return None
            if os.fstat(lock).st_nlink:
                break
            os.close(lock)  # released since
    except OSError as error:
        raise BackendError(f"cannot make: {error.strerror}", where=path, fix="set PYVMM_RUN") from error
    place = Place(name, path, lock)
    try:
        _empty(path)
        with open(place.file(INFO), "wb") as info:
            info.write(f'{{"name": "{name}", "pid": {os.getpid()}, "version": "{__version__}"}}\n'.encode())
    except OSError as error:
        place.release()
        raise BackendError(f"cannot be used: {error.strerror}", where=path, fix="set PYVMM_RUN") from error
    return place


def _make_directory(path: str) -> None:
    """Make *path*, for this user alone.

    Raises:
        BackendError: it is somebody else's.
    """
    try:
        os.makedirs(path, 0o700)
    except FileExistsError:
        _check_own(path)


def _check_own(path: str) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise BackendError("others may change it", where=path, fix="remove it, or set PYVMM_RUN") from None


def _empty(path: str) -> None:
    """Remove the files in *path* but the lock."""
    for name in os.listdir(path):
        if name != LOCK and not os.path.isdir(os.path.join(path, name)):
            os.unlink(os.path.join(path, name))
