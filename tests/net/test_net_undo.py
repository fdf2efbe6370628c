"""Networks come and go as wholes: what is taken away, or fails, or is killed, leaves the host as it was."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from ipaddress import IPv6Network

import pytest

from tests.net.killed import kill_at, lines
from tests.net.managed import Host, state
from vmm.config import Rate
from vmm.errors import BackendError, ConfigError
from vmm.host.net import guests, networks
from vmm.host.net.bridge import Bridge
from vmm.host.net.create import create_nat
from vmm.host.net.dnsmasq import Dnsmasq
from vmm.host.net.store import Store

from .namespace import ip, without_net_admin

pytestmark = pytest.mark.net

SUBNET6 = IPv6Network("fd00:77::/64")
LIMIT = Rate(per_second=10 << 20, burst=1 << 20)
#: Every so many lines are tried; the slow test tries each.
STRIDE = 16

Story = tuple[Callable[[Store], None], Callable[[Store], None], str]


def create(store: Store) -> None:
    create_nat(store, "lab", subnet6=SUBNET6, limit=LIMIT)


def attach(store: Store) -> None:
    guests.attach(store, networks.get_network(store, "lab"), "web1", limit=LIMIT)


def detach(store: Store) -> None:
    guests.detach(store, networks.get_network(store, "lab"), "web1")


def delete(store: Store) -> None:
    networks.delete(store, "lab")


def foreign_rules() -> None:
    """Rules of somebody else's, in the same hooks."""
    rules = """
    table inet filter {
        chain forward { type filter hook forward priority 0; policy accept; tcp dport 25 counter drop; }
        set blocked { type ipv4_addr; elements = { 203.0.113.7 } }
    }
    table ip nat {
        chain postrouting { type nat hook postrouting priority 100; ip saddr 10.9.0.0/16 masquerade; }
    }
    """
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)


def test_a_deleted_network_leaves_the_host_as_it_was(host: Host, store: Store) -> None:
    foreign_rules()
    before = state(host)
    create(store)
    attach(store)
    assert state(host) != before
    delete(store)
    assert state(host) == before
    assert store.networks() == []


def test_settings_made_one_by_one_are_put_back(host: Host, store: Store) -> None:
    for path, value in (
        ("ipv4/conf/up0/forwarding", "1"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv6/conf/up0/forwarding", "1"),
        ("ipv6/conf/lo/accept_ra", "0"),
    ):
        with open(f"/proc/sys/net/{path}", "w") as file:
            file.write(value)
    before = state(host)
    create(store)
    delete(store)
    assert state(host) == before


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_forwarding_ends_with_the_last_network(host: Host, store: Store, order: tuple[str, str]) -> None:
    before = state(host)
    create_nat(store, "one")
    create_nat(store, "two", subnet6=SUBNET6)
    networks.delete(store, order[0])
    with open("/proc/sys/net/ipv4/ip_forward") as file:
        assert file.read() == "1\n"
    networks.delete(store, order[1])
    assert state(host) == before


@pytest.mark.parametrize("failing", ["Rules", "Forwarding", "Bridge", "Shaping", "Dnsmasq"])
def test_a_step_that_fails_undoes_the_others(
    host: Host, store: Store, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(host)
    real = getattr(networks, failing).do

    def fail(step: object) -> None:
        real(step)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(getattr(networks, failing), "do", fail)
    with pytest.raises(BackendError) as caught:
        create(store)
    assert caught.value.where == "create network lab"
    assert caught.value.what.startswith("cannot make ")
    assert caught.value.what.endswith(": No space left on device")
    assert caught.value.fix == "the host is as it was before"
    assert state(host) == before
    assert store.networks() == []


def test_a_dnsmasq_that_does_not_start_is_told_of(host: Host, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(host)
    monkeypatch.setattr(Dnsmasq, "_configuration", lambda _: "no-such-option\n")
    with pytest.raises(BackendError, match="cannot make dnsmasq on lab: bad option at line 1"):
        create(store)
    assert state(host) == before


@pytest.mark.parametrize("action", [create, attach, delete])
def test_without_privilege(host: Host, store: Store, action: Callable[[Store], None]) -> None:
    create_nat(store, "lab")
    before = state(host)
    with without_net_admin(), pytest.raises(BackendError) as caught:
        action(store)
    assert str(caught.value) == (
        f"{store.root}: cannot change the host's networks: this needs CAP_NET_ADMIN\n  run it with sudo"
    )
    assert state(host) == before


def test_what_cannot_be_undone_is_told_and_tried_again(
    host: Host, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state(host)
    create(store)

    def fail(_: object) -> None:
        raise OSError(16, "Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(Bridge, "undo", fail)
        with pytest.raises(BackendError) as caught:
            delete(store)
    assert str(caught.value) == "delete network lab: cannot remove bridge lab: Device or resource busy"
    assert store.networks() == ["lab"]
    delete(store)
    assert state(host) == before


def test_a_device_of_somebody_elses_is_left_alone(host: Host, store: Store) -> None:
    create(store)
    ip("link del lab")
    ip("link add lab type bridge")
    with pytest.raises(BackendError, match="there is another device named lab"):
        networks.repair(store, "lab")
    delete(store)
    ip("link show lab")
    ip("link del lab")


def test_guests_that_run_keep_a_network(host: Host, store: Store) -> None:
    create(store)
    host.guest("lab").run("ip link set eth0 up")
    with pytest.raises(ConfigError, match="network lab: is in use by g1"):
        delete(store)
    networks.delete(store, "lab", force=True)
    ip("link del g1")


def clear(store: Store) -> None:
    if "lab" in store.networks():
        delete(store)


def nothing(_: Store) -> None:
    pass


def ready(store: Store) -> None:
    create(store)
    attach(store)


@pytest.mark.parametrize(
    "story",
    [
        (nothing, create, "repair"),
        (nothing, create, "delete"),
        (nothing, create, "create"),
        (create, attach, "repair"),
        (create, attach, "delete"),
        (ready, detach, "repair"),
        (ready, detach, "delete"),
        (ready, delete, "repair"),
        (ready, delete, "delete"),
    ],
    ids=lambda story: f"{story[1].__name__}-then-{story[2]}",
)
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), STRIDE])
def test_killed_at_any_line(host: Host, store: Store, story: Story, stride: int) -> None:
    """SIGKILL at a line; then `repair` leaves all or nothing, `delete` nothing, and `create` makes all."""
    prepare, action, end = story
    before = state(host)
    prepare(store)
    count = lines(lambda: action(store))
    clear(store)
    for line in range(0, count, stride):
        prepare(store)
        kill_at(lambda: action(store), line)
        if end == "create":
            create(store)
        if end == "repair" and "lab" in store.networks():
            networks.repair(store, "lab")
        if end != "delete" and networks.find_network(store, "lab"):
            assert networks.missing(store, "lab") == []
        clear(store)
        assert state(host) == before, f"killed at line {line}"
