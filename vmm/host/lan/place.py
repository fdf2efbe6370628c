"""Where a lan is: `$XDG_RUNTIME_DIR/pyvmm/lan/NAME/socket`, in directories of the user's own.

Who connects or ends holds a lock on the directory of all lans: so a switch ends only when nobody is about to join it.
"""

from __future__ import annotations

import os
import stat

from vmm.errors import BackendError, ConfigError

_NAME_MAX = 32
#: struct sockaddr_un, with the terminator.
_PATH_MAX = 107


def lan_directory(name: str) -> str:
    """The directory of the lan *name*; it need not exist.

    Raises:
        ConfigError: no lan can have that name here.
    """
    letters = name.replace("-", "a").replace("_", "a")
    if len(name) > _NAME_MAX or name.startswith("-") or not (letters.isascii() and letters.isalnum()):
        raise ConfigError(
            f"{name!r} cannot be the name of a lan",
            where="--net lan=",
            fix=f"it must have 1 to {_NAME_MAX} letters, digits, hyphens and underscores",
        )
    path = os.path.join(_runtime_directory(), "pyvmm", "lan", name)
    if len(os.fsencode(socket_path(path))) > _PATH_MAX:
        raise ConfigError(
            f"{socket_path(path)} is too long for a socket", where="--net lan=", fix="set a shorter XDG_RUNTIME_DIR"
        )
    return path


def socket_path(directory: str) -> str:
    """The switch's socket in the lan's *directory*."""
    return os.path.join(directory, "socket")


def make_directory(path: str) -> None:
    """Make the lan's directory *path*, and what is above it, for this user alone.

    Raises:
        BackendError: it cannot be made, or is somebody else's.
    """
    lans = os.path.dirname(path)
    try:
        for directory in (os.path.dirname(lans), lans, path):
            try:
                os.makedirs(directory, 0o700)
            except FileExistsError:
                try:
                    found = os.lstat(directory)
                except FileNotFoundError:  # a switch that ends has just taken it away: under the lock it stays
                    continue
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                    raise BackendError(
                        "others may change it", where=directory, fix="remove it, or set XDG_RUNTIME_DIR"
                    ) from None
    except OSError as error:
        raise BackendError(f"cannot make: {error.strerror}", where=path, fix="set XDG_RUNTIME_DIR") from error


def _runtime_directory() -> str:
    own = os.environ.get("XDG_RUNTIME_DIR")
    if own:
        return own
    session = f"/run/user/{os.geteuid()}"
    return session if os.path.isdir(session) else f"/tmp/pyvmm-{os.geteuid()}"  # noqa: S108  checked to be ours
