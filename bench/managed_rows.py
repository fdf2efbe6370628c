"""Rows of `bench/net`: what managed networks cost to make, inside a process that has its modules."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench import network
from bench.report import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.host.net.store import Store

_GUESTS = 10


@contextmanager
def _store() -> Iterator[Store]:
    """A host of the bench's own, on which nothing was made yet."""
    from vmm.host.net.store import Store

    with network.namespace(), tempfile.TemporaryDirectory(prefix="bench-net-") as directory:
        os.chmod(directory, 0o755)  # noqa: S103  dnsmasq is an ordinary user
        hosts = os.path.join(directory, "hosts")
        with open(hosts, "w", encoding="ascii") as file:
            file.write("127.0.0.1\tlocalhost\n")
        store = Store(directory)
        store.hosts = hosts
        yield store


def create(runs: int) -> list[Row]:
    """A network behind NAT comes and goes."""
    from vmm.host.net import networks
    from vmm.host.net.create import create_nat

    samples = []
    with _store() as store:
        for turn in range(runs + 1):  # the first imports pyroute2
            start = time.perf_counter()
            create_nat(store, "bench")
            networks.delete(store, "bench")
            if turn:
                samples.append(1000 * (time.perf_counter() - start))
    clock = "a bridge, forwarding, nftables and dnsmasq, made until all work, and taken away until nothing is left"
    return [Row("NAT network, create and delete", "ms", clock, 150, samples)]


def attach(runs: int) -> list[Row]:
    """Guests get taps."""
    from vmm.host.net import guests, networks
    from vmm.host.net.create import create_nat

    samples = []
    with _store() as store:
        made = create_nat(store, "bench")
        for turn in range(runs + 1):
            start = time.perf_counter()
            for number in range(_GUESTS):
                guests.attach(store, made, f"guest{number}")
            if turn:
                samples.append(1000 * (time.perf_counter() - start) / _GUESTS)
            for number in range(_GUESTS):
                guests.detach(store, made, f"guest{number}")
        networks.delete(store, "bench")
    clock = f"a tap on the network's bridge, a MAC, an address and a name for a guest; one of {_GUESTS}"
    return [Row("attach a guest", "ms", clock, 10, samples)]
