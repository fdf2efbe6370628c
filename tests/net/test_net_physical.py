"""`pyvmm net create NAME --physical NIC`: a bridge takes the NIC's place, and gives it back if anything is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.net.killed import kill_at, lines
from tests.net.managed import Host, state
from tests.waiting import until
from vmm.cli.main import main
from vmm.errors import BackendError, ConfigError
from vmm.host.net import guests, networks
from vmm.host.net.create import create_physical
from vmm.host.net.store import Store

from .namespace import ip

pytestmark = pytest.mark.net

RECEIVER = """
import hashlib, socket, sys
listener = socket.create_server(("192.0.2.1", 7))
print("ready", flush=True)
stream, total, digest = listener.accept()[0], 0, hashlib.sha256()
while data := stream.recv(1 << 16):
    total += len(data)
    digest.update(data)
print(total, digest.hexdigest())
"""


def create(store: Store) -> None:
    create_physical(store, "lab", "up0", confirm_timeout_s=30)


@contextmanager
def stream(host: Host) -> Iterator[None]:
    """A TCP transfer to the router that flows all the while, and arrives whole."""
    command = [*host.router.command("exec python3 -")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as receiver:
        assert receiver.stdin
        assert receiver.stdout
        receiver.stdin.write(RECEIVER)
        receiver.stdin.close()
        assert receiver.stdout.readline() == "ready\n"
        sender = socket.create_connection(("192.0.2.1", 7), timeout=20)
        enough, digest, total = threading.Event(), hashlib.sha256(), 0

        def send() -> None:
            nonlocal total
            while not enough.is_set():
                data = os.urandom(1 << 12)
                sender.sendall(data)
                digest.update(data)
                total += len(data)
                time.sleep(0.001)

        sending = threading.Thread(target=send)
        sending.start()
        try:
            yield
        finally:
            enough.set()
            sending.join()
            sender.close()
            received = receiver.stdout.read().split()
    assert received == [str(total), digest.hexdigest()]


def test_the_bridge_has_what_the_nic_had(host: Host, store: Store) -> None:
    ip("link set up0 mtu 1400")
    ip("-6 address add 2001:db8::2/64 dev up0 nodad")
    mac = json.loads(ip("-json link show up0"))[0]["address"]
    create(store)
    (shown,) = json.loads(ip("-json address show lab"))
    assert (shown["mtu"], shown["address"]) == (1400, mac)
    assert {one["local"] for one in shown["addr_info"]} >= {"192.0.2.2", "2001:db8::2"}
    assert json.loads(ip("-json address show up0"))[0]["addr_info"] == []
    assert json.loads(ip("-json route get 198.51.100.1"))[0]["dev"] == "lab"
    networks.delete(store, "lab")


@pytest.mark.parametrize(
    "commands",
    [
        [],
        ["route del default"],
        ["route add default via 192.0.2.9 metric 500", "route add 10.1.0.0/16 via 192.0.2.1 table 100"],
        ["address add 192.0.2.3/24 dev up0", "address add 203.0.113.2/28 dev up0", "link set up0 mtu 1400"],
        ["-6 address add 2001:db8::2/64 dev up0 nodad", "-6 route add default via 2001:db8::1"],
        ["address add 203.0.113.2/28 dev up0 noprefixroute",
         "route add 203.0.113.0/28 dev up0 proto kernel scope link src 203.0.113.2 metric 100"],
        ["link add up1 type veth peer name far1", "link set far1 up", "address add 203.0.113.2/28 dev up1",
         "link set up1 up", "route add default via 203.0.113.1 metric 7"],
        ["route add 198.51.100.0/24 via 192.0.2.1 src 192.0.2.2 metric 7", "route add 203.0.113.9 dev up0"],
    ],
    ids=["plain", "no gateway", "two default routes", "three addresses", "ipv6",
         "a manager's subnet", "another device", "routes"],
)  # fmt: skip
def test_a_deleted_network_gives_all_back(host: Host, store: Store, commands: list[str]) -> None:
    for command in commands:
        ip(command)
    before = state(host)
    create(store)
    assert state(host) != before
    networks.delete(store, "lab")
    assert state(host) == before


def test_connections_flow_all_the_while(host: Host, store: Store) -> None:
    with stream(host):
        time.sleep(0.2)
        create(store)
        networks.confirm(store, "lab")
        time.sleep(0.2)
        networks.delete(store, "lab")
        time.sleep(0.2)


def test_nobody_confirms(host: Host, store: Store) -> None:
    before = state(host)
    with stream(host):
        create_physical(store, "lab", "up0", confirm_timeout_s=1)
        assert state(host) != before
        until(lambda: store.networks() == [], 15)
    assert state(host) == before


def test_a_confirmed_network_stays(host: Host, store: Store) -> None:
    create_physical(store, "lab", "up0", confirm_timeout_s=1)
    networks.confirm(store, "lab")
    time.sleep(1.5)
    assert networks.missing(store, "lab") == []
    networks.delete(store, "lab")


def test_a_bridge_that_cuts_the_host_off_is_taken_back(host: Host, store: Store) -> None:
    rules = "table bridge wall { chain input { type filter hook input priority 0; policy drop; }; }"
    subprocess.run(["nft", rules], check=True)
    before = state(host)
    with pytest.raises(BackendError) as caught:
        create(store)
    assert str(caught.value) == (
        "create network lab: cannot make bridge lab in place of up0: the router 192.0.2.1 does not answer through lab\n"
        "  the host is as it was before"
    )
    assert state(host) == before
    assert store.networks() == []


def test_a_connection_that_stops_takes_it_back(host: Host, store: Store) -> None:
    ip("neigh replace 192.0.2.1 lladdr 02:00:00:00:00:01 dev up0")
    ip("neigh del 192.0.2.1 dev up0")
    rules = "table bridge wall { chain input { type filter hook input priority 0; ip protocol tcp drop; }; }"
    subprocess.run(["nft", rules], check=True)
    with (
        stream(host),
        pytest.raises(BackendError, match=r"the connection from port \d+ to 192.0.2.1 port 7 has stopped"),
    ):
        create(store)


def test_a_step_that_fails(host: Host, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(host)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vmm.host.net.physical.remove_addresses", fail)
    with pytest.raises(BackendError, match="cannot make bridge lab in place of up0: No space left on device"):
        create(store)
    assert state(host) == before


def test_what_changed_meanwhile_goes_to_the_nic(host: Host, store: Store) -> None:
    create(store)
    ip("address add 203.0.113.2/28 dev lab")
    networks.delete(store, "lab")
    assert "203.0.113.2/28" in ip("address show up0")


def test_guests_are_on_the_hosts_network(host: Host, store: Store) -> None:
    create(store)
    networks.confirm(store, "lab")
    guest = host.guest("lab")
    guest.run("ip address add 192.0.2.7/24 dev eth0; ip link set eth0 up")
    assert guest.pings("192.0.2.1")
    assert guest.pings("192.0.2.2")
    network = networks.get_network(store, "lab")
    made = guests.attach(store, network, "web1")
    assert (made.address, made.tap) == (None, "pyvmm-77eba3b9")
    assert networks.missing(store, "lab") == []
    with pytest.raises(ConfigError, match="network lab: is in use by g1"):
        networks.delete(store, "lab")
    networks.delete(store, "lab", force=True)


@pytest.mark.parametrize(
    ("command", "nic", "message"),
    [
        ("link add br7 type bridge", "nothing", "--physical nothing: there is no such device"),
        ("link add br7 type bridge", "br7", "--physical br7: cannot be a bridge's port"),
        ("link set lo up", "lo", "--physical lo: cannot be a bridge's port"),
        ("link set up0 down", "up0", "--physical up0: the device is down"),
        ("link add lab type bridge", "up0", "network lab: the host has a device named lab"),
    ],
)
def test_what_cannot_be(host: Host, store: Store, command: str, nic: str, message: str) -> None:
    ip(command)
    with pytest.raises(ConfigError, match=message):
        create_physical(store, "lab", nic, confirm_timeout_s=30)


def test_a_nic_in_a_bridge(host: Host, store: Store) -> None:
    ip("link add br7 type bridge")
    ip("link set up0 master br7")
    with pytest.raises(ConfigError) as caught:
        create(store)
    assert str(caught.value) == "--physical up0: is a port of br7 already\n  use that: --net bridge=br7"


def test_the_verbs(host: Host, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    ip("address change 192.0.2.2/24 dev up0 valid_lft 600 preferred_lft 600")
    assert main(["net", "create", "lab", "--physical", "up0", "--dry-run"]) == 0
    assert "ip link set up0 master lab\n" in capsys.readouterr().out
    assert main(["net", "create", "lab", "--physical", "up0", "--confirm-timeout", "30"]) == 0
    said = capsys.readouterr()
    assert said.out == "network lab: in place of up0; join it with --net lab\n"
    assert said.err == (
        "pyvmm: up0 has its address by DHCP: let the DHCP client of the host work on lab from now on\n"
        "pyvmm: all goes back in 30 seconds, unless you run: sudo pyvmm net confirm lab\n"
    )
    assert main(["net", "list"]) == 0
    assert "on trial" in capsys.readouterr().out
    assert main(["net", "confirm", "lab"]) == 0
    assert main(["net", "show", "lab"]) == 0
    assert "up0 ── physical ── lab  192.0.2.2/24" in capsys.readouterr().out
    assert main(["net", "delete", "lab"]) == 0


def test_vlans_are_where_the_lan_is(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(host)
    assert main(["net", "create", "lab", "--physical", "up0", "--vlan", "5"]) != 0
    assert "such as --net lan=NAME,vlan=5 has them" in capsys.readouterr().err
    assert state(host) == before


@pytest.mark.parametrize("end", ["delete", "wait"])
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 25])
def test_killed_at_any_line(host: Host, store: Store, end: str, stride: int) -> None:
    """SIGKILL at a line; then `delete` gives all back, or does the watch when nobody comes."""

    def create_soon(store: Store) -> None:
        create_physical(store, "lab", "up0", confirm_timeout_s=30 if end == "delete" else 1)

    before = state(host)
    count = lines(lambda: create_soon(store))
    networks.delete(store, "lab")
    assert state(host) == before
    for line in range(0, count, stride):
        kill_at(lambda: create_soon(store), line)
        if end == "delete" and store.networks():
            networks.delete(store, "lab")
        until(lambda: state(host) == before, 15)
