"""A bridge in place of a NIC that its router sets up: by DHCP, by router advertisements, and with a DNS server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.net.managed import Host, state
from tests.waiting import until
from vmm.host.net import networks
from vmm.host.net.create import create_physical
from vmm.host.net.store import Store

from .namespace import ip
from .test_net_physical import stream

pytestmark = pytest.mark.net

#: What a DHCP client does with its lease, as dhclient's and networkd's own scripts do.
CLIENT = """\
#!/bin/sh
case $1 in
deconfig) ip -4 address flush dev "$interface" ;;
bound | renew)
    ip address replace "$ip/$mask" dev "$interface" valid_lft "$lease" preferred_lft "$lease"
    ip route replace default via "$router" dev "$interface" proto dhcp src "$ip" metric 100
    echo "$1 $ip" >>"$0.log"
    ;;
esac
"""
#: The shortest that dnsmasq gives.
LEASE_S = 120
FOREVER = 0xFFFF_FFFF
ADVERTISED = "--enable-ra --dhcp-range=2001:db8:1::,ra-only,64,10m"
#: Keeps the settings of each device in a file beside itself.
RESOLVECTL = """\
#!/bin/sh
what=$1 device=$2; shift 2
[ $# -eq 0 ] || echo "$*" >"$(dirname "$0")/$what.$device"
[ $# -gt 0 ] || echo "Link 2 ($device): $(cat "$(dirname "$0")/$what.$device" 2>/dev/null)"
"""


@contextmanager
def router(host: Host, *options: str) -> Iterator[None]:
    """dnsmasq on the router: its DHCP, DNS and advertisements."""
    command = "exec dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file --user=root --no-resolv --no-hosts "
    command += (
        f"--interface=down0 --bind-interfaces --dhcp-leasefile={host.directory}/router.leases --dhcp-authoritative "
    )
    command += f"--address=/router.test/192.0.2.1 --no-ping {' '.join(options)}"
    with subprocess.Popen(host.router.command(command), stderr=subprocess.PIPE) as running:
        try:
            yield
        finally:
            running.kill()


#: What the router gives by DHCP.
LEASES = f"--dhcp-range=192.0.2.50,192.0.2.60,{LEASE_S}"


class Client:
    """busybox's DHCP client on *device*, which works until it is ended."""

    def __init__(self, host: Host, device: str) -> None:
        script = os.path.join(host.directory, f"client-{device}-{time.monotonic_ns()}")
        with open(script, "w") as file:
            file.write(CLIENT)
        os.chmod(script, 0o755)
        self._log = Path(f"{script}.log")
        command = ["busybox", "udhcpc", "-i", device, "-f", "-t", "10", "-T", "1", "-s", script]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def said(self) -> list[str]:
        """What it got: ``bound ADDRESS``, then ``renew ADDRESS``."""
        return self._log.read_text().splitlines() if self._log.exists() else []

    def renew(self) -> None:
        """Let it ask for its lease anew."""
        self._process.send_signal(signal.SIGUSR1)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def client(host: Host, device: str) -> Iterator[Client]:
    working = Client(host, device)
    try:
        until(lambda: bool(working.said()))
        yield working
    finally:
        working.end()


def addresses(device: str, family: str) -> dict[str, int]:
    """The global addresses of *device*, each with the seconds that it is valid."""
    (shown,) = json.loads(ip(f"-json address show dev {device}"))
    return {
        one["local"]: one["valid_life_time"]
        for one in shown["addr_info"]
        if one["family"] == family and one["scope"] == "global"
    }


def learned(device: str) -> int:
    """How many default routes *device* has from advertisements."""
    return len(json.loads(ip(f"-6 -json route show default dev {device} proto ra") or "[]"))


def create(store: Store) -> None:
    create_physical(store, "lab", "up0", confirm_timeout_s=30)
    networks.confirm(store, "lab")


def set_up_by_dhcp(host: Host) -> str:
    """Let up0 have nothing but what DHCP gives; its address."""
    ip("-4 address flush dev up0")
    with client(host, "up0") as first:
        return first.said()[0].split()[1]


def test_a_lease_goes_with_the_bridge_and_comes_back(host: Host, store: Store) -> None:
    with router(host, LEASES):
        address = set_up_by_dhcp(host)
        before = state(host)
        create(store)
        assert addresses("lab", "inet") == {address: FOREVER}, "nobody is locked out when the lease ends"
        with client(host, "lab") as moved:
            assert moved.said() == [f"bound {address}"]
            assert addresses("lab", "inet") == {address: LEASE_S}
            moved.renew()
            until(lambda: moved.said() == [f"bound {address}", f"renew {address}"])
            assert json.loads(ip("-json route get 198.51.100.1"))[0]["dev"] == "lab"
        networks.delete(store, "lab")
        with client(host, "up0") as back:
            assert back.said() == [f"bound {address}"]
            assert state(host) == before


def test_a_client_that_stays_with_the_nic_takes_nothing_from_the_bridge(host: Host, store: Store) -> None:
    with router(host, LEASES):
        address = set_up_by_dhcp(host)
        with client(host, "up0") as left, stream(host):
            create(store)
            left.renew()
            time.sleep(2)
            ip("-4 address flush dev up0")  # which it does when the lease ends
            assert addresses("lab", "inet") == {address: FOREVER}
            networks.delete(store, "lab")
            time.sleep(0.2)


def test_advertisements_go_on_over_the_bridge(host: Host, store: Store) -> None:
    host.router.run("ip -6 address add 2001:db8:1::1/64 dev down0 nodad")
    with router(host, ADVERTISED):
        until(lambda: bool(addresses("up0", "inet6")) and learned("up0") == 1)
        before, address = state(host), set(addresses("up0", "inet6"))
        create(store)
        assert set(addresses("lab", "inet6")) == address
        assert (learned("lab"), learned("up0")) == (1, 0)
        host.router.run("ip -6 address add 2001:db8:2::1/64 dev down0 nodad")
    with router(host, ADVERTISED, ADVERTISED.replace("db8:1", "db8:2")):
        until(lambda: any(other.startswith("2001:db8:2:") for other in addresses("lab", "inet6")))
        host.router.run("ip -6 address del 2001:db8:2::1/64 dev down0")
        ip(f"-6 address del {next(other for other in addresses('lab', 'inet6') if other not in address)}/64 dev lab")
    with router(host, ADVERTISED):
        networks.delete(store, "lab")
        assert learned("up0") == 1
        assert state(host) == before


def test_a_router_that_leaves_is_left(host: Host, store: Store) -> None:
    """What the kernel learned for the bridge itself it also forgets: no copy of the NIC's route is in the way."""
    host.router.run("ip -6 address add 2001:db8:1::1/64 dev down0 nodad")
    with router(host, ADVERTISED):
        until(lambda: learned("up0") == 1)
        create(store)
    with router(host, ADVERTISED, "--ra-param=down0,0,0"):  # a lifetime of 0: no router any more (RFC 4861 §4.2)
        until(lambda: learned("lab") == 0)
    networks.delete(store, "lab")


def test_what_a_manager_learned_moves_as_it_is(host: Host, store: Store) -> None:
    """Such as systemd-networkd: the kernel is not to learn anything by itself."""
    with open("/proc/sys/net/ipv6/conf/up0/accept_ra", "w") as file:
        file.write("0")
    ip("-6 address add 2001:db8:1::2/64 dev up0 valid_lft 3600 preferred_lft 1800")
    ip("-6 route add default via fe80::1 dev up0 proto ra metric 1024 expires 1800")
    before = state(host)
    create(store)
    assert "via fe80::1 dev lab proto ra metric 1024 expires" in ip("-6 route show default")
    networks.delete(store, "lab")
    assert state(host) == before


def test_a_privacy_address_stays_for_its_connections(host: Host, store: Store) -> None:
    with open("/proc/sys/net/ipv6/conf/up0/use_tempaddr", "w") as file:
        file.write("2")
    host.router.run("ip -6 address add 2001:db8:1::1/64 dev down0 nodad")
    with router(host, ADVERTISED):
        until(lambda: "temporary" in ip("-6 address show dev up0"))
        private = json.loads(ip("-6 -json address show dev up0 temporary"))[0]["addr_info"][0]["local"]
        create(store)
        shown = json.loads(ip("-6 -json address show dev lab"))[0]["addr_info"]
        assert [one["deprecated"] for one in shown if one.get("local") == private] == [True]
        networks.delete(store, "lab")
        assert private in addresses("up0", "inet6")


def test_dns_settings_move_and_come_back(
    host: Host, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "resolvectl").write_text(RESOLVECTL)
    (tmp_path / "resolvectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for words in (("dns", "up0", "192.0.2.1", "2001:db8::53"), ("domain", "up0", "~test")):
        subprocess.run(["resolvectl", *words], check=True)

    def shown(device: str) -> list[str]:
        done = [
            subprocess.run(["resolvectl", what, device], capture_output=True, text=True) for what in ("dns", "domain")
        ]
        return [one.stdout.strip() for one in done]

    create(store)
    assert shown("lab") == ["Link 2 (lab): 192.0.2.1 2001:db8::53", "Link 2 (lab): ~test"]
    (tmp_path / "dns.up0").unlink()  # systemd-resolved forgets those of a device without address
    networks.delete(store, "lab")
    assert shown("up0") == ["Link 2 (up0): 192.0.2.1 2001:db8::53", "Link 2 (up0): ~test"]


def test_names_are_found_all_the_while(host: Host, store: Store) -> None:
    def finds() -> bool:
        command = ["busybox", "nslookup", "-type=a", "router.test", "192.0.2.1"]
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        return "Name:\trouter.test\nAddress: 192.0.2.1" in found

    with router(host, LEASES):
        until(finds)
        create(store)
        assert finds()
        networks.delete(store, "lab")
        assert finds()
