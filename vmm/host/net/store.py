"""What pyvmm knows of the networks it made: files under `/var/lib/pyvmm/net`, or `$PYVMM_STATE/net`.

======================  =====================================================
`lock`                  held by whoever changes something
`forwarding.json`       what the host's forwarding was (`forwarding`)
`NAME/network.json`     a network: how it is to be, and whether it is finished
`NAME/guests.json`      its guests: `guests.Guest` by name
`NAME/…`                dnsmasq's files (`dnsmasq`)
======================  =====================================================

Every write is a new file in the old one's place, so that a reader, or a process that is killed, never sees half of one.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

_DEFAULT = "/var/lib/pyvmm"
_CAP_NET_ADMIN = 12  # linux/capability.h


class Store:
    """The files under *root*. Reading needs no lock, writing does."""

    def __init__(self, root: str | None = None) -> None:
        self.root = root or os.path.join(os.environ.get("PYVMM_STATE") or _DEFAULT, "net")
        #: The host's table of names.
        self.hosts = os.environ.get("PYVMM_HOSTS") or "/etc/hosts"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else changes the host's networks meanwhile; waits for who does. Ends with the process, at the latest.

        What is written meanwhile all may read: dnsmasq is an ordinary user.

        Raises:
            BackendError: we may not change them, or not write there. Said before anything is begun.
        """
        if not may_administer():
            raise BackendError(
                "cannot change the host's networks: this needs CAP_NET_ADMIN", where=self.root, fix="run it with sudo"
            )
        umask = os.umask(0o022)
        try:
            lock = self._open_lock()
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
        finally:
            os.umask(umask)

    def networks(self) -> list[str]:
        """The names of all networks, unfinished ones too."""
        try:
            names = os.listdir(self.root)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if os.path.exists(self.path(name, "network.json")))

    def path(self, *parts: str) -> str:
        """The path of the file *parts*."""
        return os.path.join(self.root, *parts)

    def read(self, *parts: str) -> Any:
        """The JSON document in the file *parts*, or None if there is none."""
        try:
            with open(self.path(*parts), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return None

    def write(self, document: Any, *parts: str) -> None:
        """Put the JSON *document* in the file *parts*; it has reached the disk then."""
        self.write_text(json.dumps(document, indent=2) + "\n", *parts)

    def write_text(self, text: str, *parts: str) -> None:
        """Put *text* in the file *parts*; it has reached the disk then.

        Raises:
            BackendError: it cannot be written.
        """
        path = self.path(*parts)
        passing = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}")
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            with open(passing, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(passing, path)
        except OSError as error:
            raise BackendError(f"cannot write: {error.strerror}", where=path) from error

    def remove(self, *parts: str) -> None:
        """Remove the file *parts*, or nothing if there is none."""
        try:
            os.unlink(self.path(*parts))
        except FileNotFoundError:
            return

    def forget(self, network: str) -> None:
        """Remove all files of *network*."""
        self.remove(network, "network.json")  # first: without it the rest counts for nothing
        shutil.rmtree(self.path(network), ignore_errors=True)

    def _open_lock(self) -> int:
        try:
            os.makedirs(self.root, exist_ok=True)
            return os.open(os.path.join(self.root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BackendError(f"cannot write: {error.strerror}", where=self.root, fix="run it with sudo") from error


def may_administer() -> bool:
    """Whether this thread has CAP_NET_ADMIN."""
    with open("/proc/thread-self/status", encoding="ascii") as lines:
        effective = next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))
    return bool(effective >> _CAP_NET_ADMIN & 1)
