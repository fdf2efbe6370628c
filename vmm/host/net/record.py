"""What is recorded of a network: how it is to be, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vmm.host.net.network import Nat
from vmm.host.net.physical import Physical

if TYPE_CHECKING:
    from vmm.host.net.store import Store

Network = Nat | Physical
_FILE = "network.json"
_KINDS: dict[str, type[Nat | Physical]] = {kind.kind: kind for kind in (Nat, Physical)}


@dataclass(frozen=True)
class Record:
    """*network*, and its *state*; on trial until somebody confirms it, with the *token*. What it says of the host is of
    the boot *boot*: a trial ends with that.

    *persist* is what it will be set up by from then on, as `Physical.persist`.
    """

    network: Network
    state: Literal["creating", "trial", "ready", "deleting"]
    token: str = ""
    boot: str = ""
    persist: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the network is there: what is not was interrupted, and is to be cleared away."""
        return self.state == "ready" or (self.state == "trial" and self.boot == boot_id())


def read_record(store: Store, name: str) -> Record | None:
    """What is recorded of the network *name*."""
    document = store.read(name, _FILE)
    if document is None:
        return None
    network = document.pop("network")
    return Record(network=_KINDS[network["kind"]].from_json(network), **document)


def write_record(store: Store, record: Record) -> None:
    """Record it."""
    document = {"state": record.state, "token": record.token, "boot": record.boot, "persist": record.persist}
    store.write({**document, "network": record.network.to_json()}, record.network.name, _FILE)


def boot_id() -> str:
    """What tells this boot of the host from all others."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
