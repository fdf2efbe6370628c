"""`pyvmm net repair` makes a network what it was: after a reboot, a crash, or somebody who took parts of it away."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from ipaddress import IPv6Network

import pytest

from tests.net.managed import Host, servers
from tests.waiting import until
from vmm.config import Rate
from vmm.host.net import forwarding, guests, networks
from vmm.host.net.bridge import create_bridge_tap
from vmm.host.net.create import create_nat
from vmm.host.net.dnsmasq import Dnsmasq
from vmm.host.net.network import Nat
from vmm.host.net.store import Store

from .namespace import ip, sysctl

pytestmark = pytest.mark.net


@pytest.fixture
def network(host: Host, store: Store) -> Nat:
    """A network with everything there is, and a guest with a tap on it."""
    made = create_nat(store, "lab", subnet6=IPv6Network("fd00:77::/64"), limit=Rate(per_second=10 << 20, burst=1 << 20))
    guests.attach(store, made, "web1", limit=Rate(per_second=1 << 20, burst=1 << 20))
    return made


def dnsmasq(host: Host) -> int | None:
    """The process that is dnsmasq itself, if there is one."""
    for pid in servers(host):
        with open(f"/proc/{pid}/comm") as file:
            if file.read() == "dnsmasq\n":
                return pid
    return None


@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("nft flush ruleset", ["nftables table inet pyvmm-lab", "nftables table bridge pyvmm-77eba3b9"]),
        ("nft delete chain inet pyvmm-lab world", ["nftables table inet pyvmm-lab"]),
        ("nft insert rule inet pyvmm-lab forward accept", ["nftables table inet pyvmm-lab"]),
        ("sysctl -q net.ipv4.ip_forward=0", ["IPv4 forwarding"]),
        ("sysctl -q net.ipv6.conf.all.forwarding=0", ["IPv6 forwarding"]),
        ("ip link set lab down", ["bridge lab"]),
        ("ip address flush dev lab", ["bridge lab"]),
        ("tc qdisc del dev lab root", ["limit of lab"]),
        ("ip link del lab", ["bridge lab", "limit of lab", "tap pyvmm-77eba3b9"]),
        ("ip link del pyvmm-77eba3b9", ["tap pyvmm-77eba3b9", "limit of pyvmm-77eba3b9"]),
        ("ip link set pyvmm-77eba3b9 nomaster", ["tap pyvmm-77eba3b9"]),
        ("rm $PYVMM_STATE/net/lab/hosts/web1", ["name web1.lab"]),
        ("truncate -s 0 $PYVMM_HOSTS", ["name web1.lab"]),
        ("true", []),
    ],
)
def test_what_is_missing_is_made(host: Host, store: Store, network: Nat, command: str, made: list[str]) -> None:
    subprocess.run(command, shell=True, check=True)
    assert networks.missing(store, "lab") == made
    assert networks.repair(store, "lab") == made
    assert networks.missing(store, "lab") == []
    host.lease(host.guest("lab"))


def test_after_a_reboot(host: Host, store: Store, network: Nat, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is there but the files, and the host's own settings are what they are now."""
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    for device in ("lab", "pyvmm-77eba3b9"):
        ip(f"link del {device}")
    Dnsmasq(store, network).stop()
    monkeypatch.setattr(forwarding, "boot_id", lambda: "another boot")
    networks.repair(store, "lab")
    assert networks.missing(store, "lab") == []
    networks.delete(store, "lab")
    assert sysctl("net/ipv4/ip_forward") == "1"


def test_a_dnsmasq_that_dies_is_started_again(host: Host, store: Store, network: Nat) -> None:
    old = dnsmasq(host)
    assert old
    os.kill(old, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while dnsmasq(host) in (None, old):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    host.lease(host.guest("lab"))


def test_a_dnsmasq_without_its_loop_is_replaced(host: Host, store: Store, network: Nat) -> None:
    old = servers(host)
    os.kill(old[0], signal.SIGKILL)  # the loop: it is the elder
    until(lambda: old[0] not in servers(host))
    assert networks.repair(store, "lab") == ["dnsmasq on lab"]
    assert not set(old) & set(servers(host))
    assert len(servers(host)) == 2


def test_a_running_guest_comes_back_on_the_bridge(host: Host, store: Store, network: Nat) -> None:
    with store.locked():
        guest = guests.reserve(store, network, "web2")
        tap = create_bridge_tap("lab", name=guest.tap)
    ip("link del lab")
    assert f"tap {guest.tap}" in networks.repair(store, "lab")
    assert "master lab" in ip(f"link show {guest.tap}")
    tap.close()
