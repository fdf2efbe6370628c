"""Guests of a managed network: what a name gives, and who may have it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import pytest

from tests.net.managed import Host, state
from vmm.config import NetConfig, Rate
from vmm.errors import BackendError, ConfigError
from vmm.host.net import guests
from vmm.host.net.create import create_nat
from vmm.host.net.join import join_here
from vmm.host.net.network import Nat, parse_subnet
from vmm.host.net.store import Store
from vmm.mac import parse_mac

from .frames import arp_request, receive, send
from .namespace import await_carrier, ip, links

pytestmark = pytest.mark.net

#: Sends a megabyte a second in datagrams, for so long.
FLOOD_S = 2
FLOOD = f"""
import socket, sys, time
flood, end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), time.monotonic() + {FLOOD_S}
while time.monotonic() < end:
    flood.sendto(bytes(1000), (sys.argv[1], 9))
    time.sleep(0.001)
"""
#: Prints how many bytes have come when no more come.
COUNT = """
import socket, sys
sink, count = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0
sink.bind((sys.argv[1], 9))
print("ready", flush=True)
try:
    while True:
        count += len(sink.recv(2048))
        sink.settimeout(0.5)
except TimeoutError:
    print(count)
"""


def test_a_guest_joins_by_name(host: Host, store: Store, network: Nat) -> None:
    tap, mac = join_here(NetConfig(network="lab", name="web1"))
    with contextlib.closing(tap):
        guest = guests.get_guest(store, network, "web1")
        assert (tap.name, mac) == (guest.tap, parse_mac(guest.mac))
        await_carrier("lab")
        assert send(tap, arp_request(network.gateway.packed))
        assert receive(tap, b"\x08\x06")[1][28:32] == network.gateway.packed
    assert tap.name not in links()


def test_the_next_run_has_the_same_addresses(host: Host, store: Store, network: Nat) -> None:
    seen = set()
    for _ in range(2):
        tap, mac = join_here(NetConfig(network="lab", name="web1"))
        tap.close()
        seen.add((tap.name, mac, guests.get_guest(store, network, "web1")))
    assert len(seen) == 1


def test_a_guest_without_a_name_leaves_no_record(host: Host, store: Store, network: Nat) -> None:
    tap, mac = join_here(NetConfig(network="lab"))
    tap.close()
    assert mac is None
    assert guests.read_guests(store, "lab") == {}


def test_a_name_runs_once(host: Host, store: Store, network: Nat) -> None:
    tap, _ = join_here(NetConfig(network="lab", name="web1"))
    with contextlib.closing(tap), pytest.raises(BackendError, match=r"^network lab: web1 runs already: "):
        join_here(NetConfig(network="lab", name="web1", queues=2))


def test_a_guest_that_runs_is_not_detached(host: Host, store: Store, network: Nat) -> None:
    tap, _ = join_here(NetConfig(network="lab", name="web1"))
    with contextlib.closing(tap), pytest.raises(ConfigError, match="network lab: web1 runs: "):
        guests.detach(store, network, "web1")


def test_a_missing_network_says_how_to_make_it(host: Host) -> None:
    with pytest.raises(ConfigError) as caught:
        join_here(NetConfig(network="lab", name="web1"))
    assert str(caught.value) == "network lab: there is no such network\n  run: sudo pyvmm net create lab --nat"


def test_an_attached_guest_has_a_tap_that_stays(host: Host, store: Store, network: Nat) -> None:
    guest = guests.attach(store, network, "web1", owner=65534, limit=Rate(per_second=1 << 20, burst=1 << 20))
    (shown,) = json.loads(ip(f"-json -details link show {guest.tap}"))
    assert shown["master"] == "lab"
    assert shown["qdisc"] == "tbf"
    assert shown["linkinfo"]["info_data"]["persist"]
    assert shown["linkinfo"]["info_data"]["user"] in ("nobody", 65534)
    tap, mac = join_here(NetConfig(network="lab", name="web1"))
    tap.close()
    assert (tap.name, mac) == (guest.tap, parse_mac(guest.mac))
    assert guest.tap in links()


@pytest.mark.root
def test_its_owner_needs_no_privilege(host: Host, store: Store, network: Nat) -> None:
    guests.attach(store, network, "web1", owner=65534)
    program = "import vmm.config, vmm.host.net.join as j; print(j.join(vmm.config.parse_net('lab,name=web1'))[0].name)"
    script = """
        mknod "$PYVMM_STATE/tun" c 10 200 && chmod 666 "$PYVMM_STATE/tun"
        mount --bind "$PYVMM_STATE/tun" /dev/net/tun
        exec setpriv --reuid=65534 --clear-groups --inh-caps=-all --bounding-set=-all "$0" -c "$1"
    """
    command = ["unshare", "--mount", "sh", "-ec", script, sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "pyvmm-77eba3b9\n", done.stderr


def test_attaching_again_changes_what_differs(host: Host, store: Store, network: Nat) -> None:
    guests.attach(store, network, "web1")
    guest = guests.attach(store, network, "web1", limit=Rate(per_second=1 << 20, burst=1 << 20))
    assert "tbf" in ip(f"link show {guest.tap}")
    guests.attach(store, network, "web1")
    assert "tbf" not in ip(f"link show {guest.tap}")


@pytest.mark.parametrize("from_guest", [False, True], ids=["received", "sent"])
def test_a_limit_holds_for_what_the_guest(host: Host, store: Store, network: Nat, *, from_guest: bool) -> None:
    limit = Rate(per_second=200_000, burst=20_000)
    guest = host.guest("lab", name=guests.plan_guest(store, network, "web1").tap)
    guest.run("ip address add 10.77.0.9/24 dev eth0; ip link set eth0 up")
    guests.attach(store, network, "web1", limit=limit)
    assert guest.pings("10.77.0.1")
    ends = ("10.77.0.9", "10.77.0.1") if from_guest else ("10.77.0.1", "10.77.0.9")
    here = guest.command if from_guest else (lambda command: ["sh", "-c", command])
    there = (lambda command: ["sh", "-c", command]) if from_guest else guest.command
    counter = subprocess.Popen(
        there(f"exec {sys.executable} -c '{COUNT}' {ends[1]}"), stdout=subprocess.PIPE, text=True
    )
    with counter:
        assert counter.stdout
        assert counter.stdout.readline() == "ready\n"
        subprocess.run(here(f"exec {sys.executable} -c '{FLOOD}' {ends[1]}"), check=True)
        received = int(counter.stdout.read())
    assert limit.per_second < received < 2 * limit.per_second * FLOOD_S


def test_attach_and_detach_leave_nothing(host: Host, store: Store, network: Nat) -> None:
    before = state(host)
    guests.attach(store, network, "web1")
    guests.attach(store, network, "web2")
    guests.detach(store, network, "web1")
    guests.detach(store, network, "web2")
    assert state(host) == before
    with pytest.raises(ConfigError, match="network lab: has no guest web1"):
        guests.detach(store, network, "web1")


def test_a_full_network(host: Host, store: Store) -> None:
    network = create_nat(store, "tiny", subnet=parse_subnet("10.99.0.0/29"))
    addresses = {str(guests.attach(store, network, name).address) for name in ("a", "b", "c")}
    assert addresses == {"10.99.0.4", "10.99.0.5", "10.99.0.6"}
    with pytest.raises(ConfigError, match="all 3 addresses for guests with names are in use"):
        guests.attach(store, network, "d")
