"""Many at once: two hundred processes that make and join networks of the same names."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.net.managed import Host, state
from vmm.errors import ConfigError
from vmm.host.net import guests, networks
from vmm.host.net.create import create_nat
from vmm.host.net.network import Nat
from vmm.host.net.store import Store

pytestmark = pytest.mark.net

PROCESSES = 200


def at_once(action: Callable[[int], object]) -> None:
    """Do *action* with the numbers up to `PROCESSES`, in a process each."""
    pids = []
    for number in range(PROCESSES):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                action(number)
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    assert {os.waitpid(pid, 0)[1] for pid in pids} == {0}


def test_creates_of_overlapping_names(host: Host, store: Store) -> None:
    before = state(host)
    at_once(lambda number: create_nat(store, f"net{number % 10}"))
    made = networks.all_networks(store)
    assert len(made) == len({network.subnet for network in made if isinstance(network, Nat)}) == 10
    assert all(networks.missing(store, network.name) == [] for network in made)

    def delete(number: int) -> None:
        with suppress(ConfigError):  # it has gone
            networks.delete(store, f"net{number % 10}")

    at_once(delete)
    assert state(host) == before


def test_attaches_of_overlapping_names(host: Host, store: Store) -> None:
    network = create_nat(store, "lab")
    before = state(host)
    at_once(lambda number: guests.attach(store, network, f"guest{number % 50}"))
    made = guests.read_guests(store, "lab").values()
    assert len({guest.address for guest in made}) == len({guest.tap for guest in made}) == 50
    assert networks.missing(store, "lab") == []
    assert host.names().count("# pyvmm net lab") == 50
    for guest in made:
        guests.detach(store, network, guest.name)
    assert state(host) == before


def test_creates_and_deletes_of_one_name(host: Host, store: Store) -> None:
    before = state(host)

    def create_or_delete(number: int) -> None:
        if number % 2:
            create_nat(store, "lab")
            return
        with suppress(ConfigError):  # it has gone
            networks.delete(store, "lab")

    at_once(create_or_delete)
    if networks.find_network(store, "lab"):
        networks.delete(store, "lab")
    assert state(host) == before
