"""`pyvmm-net-helper`: VMs of ordinary users on networks that root has allowed them, and nothing else."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.fakes.host import NOBODY
from tests.net.managed import Host, servers, state
from tests.waiting import until
from vmm.config import NetConfig
from vmm.errors import BackendError, ConfigError
from vmm.host.net import guests, networks
from vmm.host.net.create import create_nat
from vmm.host.net.join import join
from vmm.host.net.network import Nat
from vmm.host.net.private import GUEST_MAC
from vmm.host.net.store import Store
from vmm.host.net_helper.client import Helper, ask_networks
from vmm.mac import parse_mac

from .frames import BROADCAST, ETHERTYPE_TEST, arp_request, receive, send
from .frames import GUEST_MAC as MAC
from .helper import ANN, BOB, Service, joined
from .namespace import as_user, ip, links

pytestmark = [pytest.mark.net, pytest.mark.root]

TUNSETPERSIST = 0x400454CB  # linux/if_tun.h


def test_the_network_nat_is_made_for_whom_it_is_allowed(host: Host, store: Store, service: Service) -> None:
    before = state(host)
    with open(service.allow_list, "a") as file:
        file.write('[[allow]]\nusers = ["nobody"]\nnetworks = ["nat"]\n')
    with joined(NetConfig(network="nat", private=True)), joined(NetConfig(network="nat", private=True)):
        known = guests.read_guests(store, "nat")
        assert {(guest.name, guest.owner) for guest in known.values()} == {("private1", ANN), ("private2", ANN)}
    until(lambda: not service.children())
    networks.delete(store, "nat")
    assert state(host) == before


def test_users_have_private_guests_of_their_own(network: Nat, store: Store, service: Service) -> None:
    for _ in range(2):
        with joined(NetConfig(network="lab", private=True)), joined(NetConfig(network="lab", private=True), BOB):
            known = guests.read_guests(store, "lab")
            assert {(guest.name, guest.owner) for guest in known.values()} == {("private1", ANN), ("private2", BOB)}
        until(lambda: not service.children())


def test_a_user_joins_a_network(network: Nat, service: Service) -> None:
    with joined(NetConfig(network="lab")) as tap:
        assert tap.mtu == 1500
        assert send(tap, arp_request(network.gateway.packed))
        assert receive(tap, b"\x08\x06")[1][28:32] == network.gateway.packed
        assert tap.name in links()
    until(lambda: tap.name not in links())
    assert f"{service.allow_list}:2 allows user nobody network lab: user nobody joins\n" in service.said()


def test_a_user_joins_a_bridge(host_bridge: str, service: Service) -> None:
    with joined(NetConfig(bridge="br0")) as tap:
        assert send(tap, arp_request(b"\x0a\x00\x00\x01"))
        assert receive(tap, b"\x08\x06")[1][28:32] == b"\x0a\x00\x00\x01"


def test_two_users_guests_meet(network: Nat, service: Service) -> None:
    with joined(NetConfig(network="lab")) as one, joined(NetConfig(network="lab"), BOB) as two:
        assert one.name != two.name
        frame = BROADCAST + MAC + ETHERTYPE_TEST + b"hello".ljust(50)
        assert send(one, frame)
        assert receive(two, ETHERTYPE_TEST)[1] == frame


def test_a_guest_by_name_has_its_addresses(store: Store, network: Nat, service: Service) -> None:
    with as_user(ANN):
        tap, mac = join(NetConfig(network="lab", name="web1"))
    with contextlib.closing(tap):
        guest = guests.get_guest(store, network, "web1")
        assert (tap.name, mac, guest.owner) == (guest.tap, parse_mac(guest.mac), ANN)
    until(lambda: not service.children())
    with joined(NetConfig(network="lab", name="web1")) as again:
        assert again.name == guest.tap


def test_a_user_cannot_take_a_name_that_the_host_uses(host: Host, network: Nat, service: Service) -> None:
    with joined(NetConfig(network="lab", name="localhost")):
        assert "\tlocalhost.lab\t# pyvmm net lab\n" in host.names()


def test_a_name_runs_once(network: Nat, service: Service) -> None:
    with joined(NetConfig(network="lab", name="web1")), pytest.raises(BackendError, match="web1 runs already: "):
        joined(NetConfig(network="lab", name="web1"))


def test_a_name_is_its_first_users(store: Store, network: Nat, service: Service) -> None:
    with joined(NetConfig(network="lab", name="web1")):
        pass
    with pytest.raises(ConfigError) as caught:
        joined(NetConfig(network="lab", name="web1"), BOB)
    assert str(caught.value) == (
        "network lab: web1 is nobody's\n  choose another name=, or run: sudo pyvmm net detach lab web1"
    )
    until(lambda: not service.children())
    guests.detach(store, network, "web1")
    with joined(NetConfig(network="lab", name="web1"), BOB):
        pass


def test_a_user_has_so_many_names(
    store: Store, network: Nat, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guests, "NAMES_MAX", 1)
    with store.locked():
        guests.reserve(store, network, "web1", ANN)
        guests.reserve(store, network, "web1", ANN)
        guests.reserve(store, network, "db", BOB)
        with pytest.raises(ConfigError, match="network lab: nobody has 1 names already"):
            guests.reserve(store, network, "web2", ANN)


def test_roots_guests_are_not_to_be_had(store: Store, network: Nat, service: Service) -> None:
    guests.attach(store, network, "web1")
    guests.attach(store, network, "web2", owner=ANN)
    for name in ("web1", "web2"):
        request = json.dumps({"version": 1, "network": "lab", "name": name}).encode()
        with as_user(BOB):
            assert "web" in str(service.answer(request)["what"])


def test_a_guest_that_root_attached_keeps_its_tap(store: Store, network: Nat, service: Service) -> None:
    guest = guests.attach(store, network, "web1", owner=ANN)
    with as_user(ANN):
        assert service.answer(b'{"version": 1, "network": "lab", "name": "web1"}')["tap"] == guest.tap
    until(lambda: not service.children())
    assert guest.tap in links()


def test_copies_side_by_side(host: Host, network: Nat, service: Service) -> None:
    before = len(servers(host))
    net = [NetConfig(network="lab", name=name, private=True) for name in ("copy1", "copy2")]
    with joined(net[0]) as one, joined(net[1]) as two:
        for tap in (one, two):
            assert send(tap, arp_request(bytes((10, 0, 2, 2)), bytes((10, 0, 2, 15)), GUEST_MAC))
            assert receive(tap, b"\x08\x06")[1][28:32] == bytes((10, 0, 2, 2))
    until(lambda: not service.children())
    assert len(servers(host)) == before
    assert {"lab", "up0", "lo"} == links()


def test_several_queues(network: Nat, service: Service) -> None:
    with joined(NetConfig(network="lab", queues=3)) as tap:
        assert len(tap.queues) == 3
        tap.enable(3)
        tap.enable(1)


def test_other_users_cannot_have_a_queue_of_it(network: Nat, service: Service) -> None:
    with joined(NetConfig(network="lab", queues=2)) as tap:
        (shown,) = json.loads(ip(f"-json -details link show {tap.name}"))
        assert shown["linkinfo"]["info_data"]["user"] in ("nobody", ANN)


def test_it_leaves_the_host_as_it_was(host: Host, store: Store, service: Service) -> None:
    before = state(host)
    create_nat(store, "lab")
    with joined(NetConfig(network="lab", name="web1")), joined(NetConfig(network="lab")):
        pass
    until(lambda: not service.children())
    networks.delete(store, "lab")
    assert state(host) == before


# A VM ends, however that happens.

VM = """
import time
from vmm.config import NetConfig
from vmm.host.net.join import join
kept = [join(NetConfig(network="lab")), join(NetConfig(network="lab", name="web1", private=True))]
print("up", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def vm() -> Iterator[subprocess.Popen[bytes]]:
    """A process of an ordinary user with cards on the network."""
    with subprocess.Popen([*NOBODY, sys.executable, "-c", VM], stdout=subprocess.PIPE) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


def test_nothing_is_left_of_a_vm_that_is_killed(host: Host, network: Nat, service: Service) -> None:
    before = len(servers(host))
    with vm():
        assert len(links()) == 5
        assert len(service.children()) == 2
    until(lambda: links() == {"lo", "up0", "lab"})
    until(lambda: len(servers(host)) == before)


def test_a_vm_goes_on_without_the_service(network: Nat, service: Service) -> None:
    with joined(NetConfig(network="lab")) as tap:
        (child,) = service.children()
        service.end()
        assert send(tap, arp_request(network.gateway.packed))
        assert receive(tap, b"\x08\x06")[1][28:32] == network.gateway.packed
        os.kill(child, 0)
        service.start()
    until(lambda: tap.name not in links())


def test_a_tap_cannot_be_kept(network: Nat, service: Service) -> None:
    with joined(NetConfig(network="lab")) as tap:
        kept = os.dup(tap.queues[0].fileno())
        fcntl.ioctl(kept, TUNSETPERSIST, 1)
    until(lambda: tap.name not in links())
    with pytest.raises(OSError, match="File descriptor in bad state"):
        os.write(kept, bytes(64))
    os.close(kept)


# Who may not.


def test_a_user_who_is_not_on_the_list(host_bridge: str, service: Service) -> None:
    with pytest.raises(BackendError) as caught:
        joined(NetConfig(bridge="br0"), BOB)
    assert str(caught.value).splitlines() == [
        f"{service.allow_list}: no line allows user daemon network br0",
        "  line 6 allows group daemon: lab",
        '  root may add: [[allow]] users = ["daemon"] networks = ["br0"]',
    ]
    assert "pyvmm0" not in links()


def test_what_a_user_may_join(service: Service) -> None:
    with as_user(ANN):
        assert ask_networks(Helper(service.socket)) == {
            "lab": f"{service.allow_list}:2 allows user nobody network lab",
            "br0": f"{service.allow_list}:2 allows user nobody network br0",
        }


def test_a_change_of_the_list_counts_at_once(host_bridge: str, service: Service) -> None:
    with open(service.allow_list, "w") as file:
        file.write('[[allow]]\nusers = ["root"]\nnetworks = ["br0"]\n')
    with pytest.raises(BackendError, match="no line allows user nobody network br0"):
        joined(NetConfig(bridge="br0"))


def test_a_mistake_in_the_list_allows_nobody(host_bridge: str, service: Service) -> None:
    with open(service.allow_list, "a") as file:
        file.write('host = "all"\n')
    with pytest.raises(BackendError, match=r"net\.toml:8: unknown key 'host'"):
        joined(NetConfig(bridge="br0"))


def test_a_list_that_others_may_change_allows_nobody(host_bridge: str, service: Service) -> None:
    os.chmod(service.allow_list, 0o666)
    with pytest.raises(BackendError, match="others than root may change it"):
        joined(NetConfig(bridge="br0"))


def test_a_network_that_is_missing(service: Service) -> None:
    with pytest.raises(ConfigError) as caught:
        joined(NetConfig(network="lab"))
    assert str(caught.value) == "network lab: there is no such network\n  run: sudo pyvmm net create lab --nat"


def test_an_mtu_that_is_too_large(host_bridge: str, service: Service) -> None:
    with pytest.raises(ConfigError, match="bridge br0: mtu=9000 is more than the 1500 that br0 carries"):
        joined(NetConfig(bridge="br0", mtu=9000))
