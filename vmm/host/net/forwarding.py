"""The host's forwarding between devices: switched on for the first network, and put back with the last.

Switching it changes more than one setting: each device's own, and whether redirects are believed
(net/ipv4/devinet.c, inet_forward_change). All are remembered. With IPv6 forwarding on, a device that learns its routes
from router advertisements no longer would, unless `accept_ra` is 2 (ip-sysctl.rst).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError
from vmm.host.net.record import boot_id

if TYPE_CHECKING:
    from vmm.host.net.store import Store

_SYS = "/proc/sys/net"
_FILE = "forwarding.json"


class Forwarding:
    """Packets of IP *version* (4 or 6) are forwarded, for the network *name*."""

    def __init__(self, store: Store, name: str, version: int) -> None:
        self._store, self._name, self._version = store, name, version
        self._switch = "ipv4/ip_forward" if version == 4 else "ipv6/conf/all/forwarding"
        self.what = f"IPv{version} forwarding"

    def describe(self) -> str:
        return f"sysctl net.{self._switch.replace('/', '.')}=1"

    def is_done(self) -> bool:
        return self._name in self._record()["users"] and _read(self._switch) == "1"

    def do(self) -> None:
        if not os.path.exists(f"{_SYS}/{self._switch}"):
            raise BackendError(f"this kernel has no IPv{self._version}")
        record = self._record()
        if not record["users"]:
            record["before"] = {path: _read(path) for path in self._settings()}
        record["users"] = sorted({*record["users"], self._name})
        self._write(record)
        if self._version == 6:  # first, or the routes learned so far are dropped
            for path in self._settings():
                if path.endswith("/accept_ra") and _read(path) == "1" and "/default/" not in path:
                    _write(path, "2")
        if _read(self._switch) != "1":
            _write(self._switch, "1")

    def undo(self) -> None:
        record = self._record()
        if self._name not in record["users"]:
            return
        if record["users"] == [self._name]:
            # The switch goes first: it sets the others.
            for path in sorted(record["before"], key=lambda path: path != self._switch):
                if os.path.exists(f"{_SYS}/{path}") and _read(path) != record["before"][path]:
                    _write(path, record["before"][path])
        record["users"].remove(self._name)
        self._write(record)

    def _settings(self) -> list[str]:
        """The settings that switching may change, the switch among them."""
        conf = f"ipv{self._version}/conf"
        own = ("forwarding", "accept_ra") if self._version == 6 else ("forwarding",)
        paths = [f"{conf}/{device}/{name}" for device in sorted(os.listdir(f"{_SYS}/{conf}")) for name in own]
        return [self._switch, *paths] if self._version == 6 else [self._switch, f"{conf}/all/accept_redirects", *paths]

    def _record(self) -> dict[str, Any]:
        """The networks that need it, and how it was before them. Nothing of it outlives a boot of the host."""
        record = (self._store.read(_FILE) or {}).get(str(self._version))
        if record is None or record["boot"] != boot_id():
            return {"boot": boot_id(), "users": [], "before": {}}
        return dict(record)

    def _write(self, record: dict[str, Any]) -> None:
        all_records = self._store.read(_FILE) or {}
        if record["users"]:
            all_records[str(self._version)] = record
        else:
            all_records.pop(str(self._version), None)
        if all_records:
            self._store.write(all_records, _FILE)
        else:
            self._store.remove(_FILE)


def _read(path: str) -> str:
    with open(f"{_SYS}/{path}", encoding="ascii") as file:
        return file.read().strip()


def _write(path: str, value: str) -> None:
    with open(f"{_SYS}/{path}", "w", encoding="ascii") as file:
        file.write(value)
