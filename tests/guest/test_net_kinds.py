"""Two Linux guests with a card on each kind of root's networks: addresses and names are given to them, and what they
send arrives. (The kinds that need no right: `test_net_lan.py`, `test_net_user.py`.)
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.guest.linux import MIB, Image, LinuxGuest, make_disk
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
    "--bind-interfaces --except-interface=lo --interface={0} --dhcp-range={1}00,{1}99 --dhcp-authoritative --no-ping"
)

Pair = dict[str, LinuxGuest]


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


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the first guest sends."""
    return make_disk(os.path.join(tmp_path_factory.mktemp("nat"), "data.img"), 20 * MIB)


@pytest.fixture(scope="module")
def pair(micro: Image, host: managed.Host, disk: str) -> Iterator[Pair]:
    """Guests by name; the first has the disk."""
    pair = {}
    for name, more in zip(NAMES, (("-d", f"{disk},readonly"), ()), strict=True):
        cards = [option for net, _, _ in KINDS.values() for option in ("-n", net.format(name))]
        pair[name] = LinuxGuest(
            "-k", micro.kernel(), "-i", micro.initrd, "-m", "128M", *cards, *more, "-a", "quiet root="
        )
    try:
        for guest in pair.values():
            guest.wait_for_prompt()
        yield pair
    finally:
        for guest in pair.values():
            guest.close()


@dataclass
class Kind:
    """What both guests use now: the cards of that *kind*, with these *addresses* by guest."""

    kind: str
    addresses: dict[str, str]

    def finds(self, guest: str) -> str:
        """The name by which *guest* is found."""
        return KINDS[self.kind][2].format(guest)


@pytest.fixture(scope="module", params=KINDS)
def used(request: pytest.FixtureRequest, pair: Pair) -> Kind:
    """The guests have asked for addresses with their cards of one kind, and have no others."""
    card = f"eth{list(KINDS).index(request.param)}"
    addresses = {}
    for name, guest in pair.items():
        guest.run("for n in 0 1 2 3; do ip link set eth$n down; done; ip address flush scope global")
        guest.run(f"udhcpc -n -q -f -i {card} -x hostname:{name}")
        addresses[name] = guest.run(f"ip -4 -o address show {card}").split()[3]
    return Kind(request.param, addresses)


def test_each_gets_an_address(used: Kind) -> None:
    assert all(address.startswith(KINDS[used.kind][1]) for address in used.addresses.values())


@pytest.mark.parametrize("used", ["nat"], indirect=True)
def test_it_is_the_address_of_its_name(used: Kind) -> None:
    known = guests.read_guests(Store(), "lab")
    assert used.addresses == {name: f"{known[name].address}/24" for name in NAMES}


def test_they_find_each_other_by_name(pair: Pair, used: Kind) -> None:
    for guest, other in zip(pair.values(), reversed(pair), strict=True):
        assert "2 packets received" in guest.run(f"ping -c 2 {used.finds(other)}")


def test_they_reach_the_world(pair: Pair, used: Kind) -> None:
    assert "2 packets received" in pair["web1"].run("ping -c 2 198.51.100.1")


@pytest.mark.parametrize("size_mib", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_mib_from_guest_to_guest(pair: Pair, disk: str, used: Kind, size_mib: int) -> None:
    server, client = pair.values()
    serve(server, size_mib)
    fetch(client, f"http://{used.finds(NAMES[0])}/data", disk, size_mib)
    end_serving(server)


@pytest.mark.parametrize("used", ["nat", "private"], indirect=True)
def test_the_host_finds_them_by_name(host: managed.Host, used: Kind) -> None:
    name = f"{used.finds(NAMES[0])}.lab"
    address = next(line.split()[0] for line in host.names().splitlines() if name in line.split())
    subprocess.run(["busybox", "ping", "-c", "2", "-W", "5", address], check=True)
