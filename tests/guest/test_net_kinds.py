"""Two Linux guests with a card on each kind of root's networks: addresses and names are given to them, and what they
send arrives. (The kinds that need no right: `test_net_lan.py`, `test_net_user.py`.)
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass

import pytest

from tests.guest.booted import PROBE, Booted
from tests.guest.linux import LinuxGuest
from tests.guest.transfer import end_serving, fetch, serve
from tests.net import managed
from tests.net.namespace import ip, make_bridge
from vmm.host.net import guests, networks
from vmm.host.net.create import create_nat, create_physical
from vmm.host.net.store import Store

pytestmark = [pytest.mark.guest, pytest.mark.net]

NAMES = ("web1", "web2")
#: By its card: what `--net` says, what the guests get, and what a guest finds the other by.
KINDS = {
    "nat": ("lab,name={}", "10.77.0.", "{}"),
    "private": ("lab,name=copy-{},private=yes", "10.0.2.15/", "copy-{}"),
    "physical": ("wire,name={}", "192.0.2.1", "{}"),
    "bridge": ("bridge=br0", "10.0.0.1", "{}"),
}
#: DHCP and DNS where they are not pyvmm's: beyond the physical bridge, and on one of somebody else's.
DNSMASQ = (
    "exec dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file --leasefile-ro --no-resolv --no-hosts "
    "--bind-interfaces --except-interface=lo --interface={0} --dhcp-range={1}00,{1}99 --dhcp-authoritative --no-ping "
    "--domain-needed"  # else it refuses to be asked for the IPv6 addresses of names that it knows
)


@pytest.fixture(scope="module")
def host() -> Iterator[managed.Host]:
    """A host with the networks of all kinds; it has forgotten its own in the end."""
    with (
        tempfile.TemporaryDirectory(prefix="pyvmm-net-") as directory,  # dnsmasq may not enter pytest's own
        pytest.MonkeyPatch.context() as patch,
        managed.host(directory) as made,
    ):
        patch.setenv("PYVMM_STATE", made.directory)
        patch.setenv("PYVMM_HOSTS", made.hosts)
        before = managed.state(made)
        make_bridge()
        here = ["sh", "-c", DNSMASQ.format("br0", "10.0.0.1")]
        beyond = made.router.command(DNSMASQ.format("down0", "192.0.2.1"))
        servers = [subprocess.Popen(command) for command in (here, beyond)]
        made.router.run("ip route add 10.0.0.0/24 via 192.0.2.2")
        create_physical(Store(), "wire", "up0", confirm_timeout_s=60)
        networks.confirm(Store(), "wire")
        create_nat(Store(), "lab")
        yield made
        for name in ("lab", "wire"):
            networks.delete(Store(), name)
        for server in servers:
            server.kill()
            server.wait()
        ip("link del br0")
        assert managed.state(made) == before


@dataclass
class Pair:
    """Guests with a card on a network of *kind*, and their *addresses*, both by name."""

    kind: str
    guests: dict[str, LinuxGuest]
    addresses: dict[str, str]

    def finds(self, guest: str) -> str:
        """The name by which *guest* is found."""
        return KINDS[self.kind][2].format(guest)


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, small: Booted, host: managed.Host, data: str) -> Iterator[Pair]:
    """They have asked for their addresses, and have the disk."""
    pair = Pair(request.param, {}, {})
    with ExitStack() as ends:
        for name in NAMES:
            guest = ends.enter_context(closing(small.go_on(disk=data, net=KINDS[request.param][0].format(name))))
            guest.run(PROBE)
            guest.run(f"udhcpc -n -q -f -x hostname:{name}")
            pair.guests[name], pair.addresses[name] = guest, guest.run("ip -4 -o address show eth0").split()[3]
        yield pair


def test_each_gets_an_address(pair: Pair) -> None:
    assert all(address.startswith(KINDS[pair.kind][1]) for address in pair.addresses.values())


@pytest.mark.parametrize("pair", ["nat"], indirect=True)
def test_it_is_the_address_of_its_name(pair: Pair) -> None:
    known = guests.read_guests(Store(), "lab")
    assert pair.addresses == {name: f"{known[name].address}/24" for name in NAMES}


def test_they_find_each_other_by_name(pair: Pair) -> None:
    for guest, other in zip(pair.guests.values(), reversed(NAMES), strict=True):
        assert "2 packets received" in guest.run(f"ping -c 2 {pair.finds(other)}")


def test_they_reach_the_world(pair: Pair) -> None:
    assert "2 packets received" in pair.guests["web1"].run("ping -c 2 198.51.100.1")


@pytest.mark.parametrize("size_mib", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_mib_from_guest_to_guest(pair: Pair, data: str, size_mib: int) -> None:
    server, client = pair.guests.values()
    serve(server, size_mib)
    fetch(client, f"http://{pair.finds(NAMES[0])}/data", data, size_mib)
    end_serving(server)


@pytest.mark.parametrize("pair", ["nat", "private"], indirect=True)
def test_the_host_finds_them_by_name(host: managed.Host, pair: Pair) -> None:
    name = f"{pair.finds(NAMES[0])}.lab"
    address = next(line.split()[0] for line in host.names().splitlines() if name in line.split())
    subprocess.run(["busybox", "ping", "-c", "2", "-W", "5", address], check=True)
