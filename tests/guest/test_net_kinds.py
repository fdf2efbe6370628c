"""Two Linux guests with a card on each kind of root's networks: addresses and names are given to them, and what they
send arrives. (The kinds that need no right: `test_net_lan.py`, `test_net_user.py`.)
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from tests.guest.linux import MIB, Image, LinuxGuest, make_disk
from tests.guest.transfer import end_serving, fetch, serve
from tests.net import managed
from tests.net.namespace import ip
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
        ip("link add br0 type bridge")
        ip("address add 10.0.0.1/24 dev br0")
        ip("link set br0 up")
        here = ["sh", "-c", DNSMASQ.format("br0", "10.0.0.1")]
        beyond = made.router.command(DNSMASQ.format("down0", "192.0.2.1"))
        servers = [subprocess.Popen(command) for command in (here, beyond)]
        create_physical(Store(), "wire", "up0", confirm_timeout_s=None)
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


def use(pair: Pair, kind: str) -> dict[str, str]:
    """Have each guest ask for an address with its card of that *kind*, and with no other; these by name."""
    card = f"eth{list(KINDS).index(kind)}"
    addresses = {}
    for name, guest in pair.items():
        guest.run("for n in 0 1 2 3; do ip link set eth$n down; done; ip address flush scope global")
        guest.run(f"udhcpc -n -q -f -i {card} -x hostname:{name}")
        addresses[name] = guest.run(f"ip -4 -o address show {card}").split()[3]
    return addresses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size_mib", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_addresses_names_and_mib(pair: Pair, disk: str, kind: str, size_mib: int) -> None:
    _, address, names = KINDS[kind]
    assert all(given.startswith(address) for given in use(pair, kind).values())
    server, client = pair.values()
    for guest, other in zip(pair.values(), reversed(pair), strict=True):
        assert "2 packets received" in guest.run(f"ping -c 2 {names.format(other)}")
    serve(server, size_mib)
    fetch(client, f"http://{names.format(NAMES[0])}/data", disk, size_mib)
    end_serving(server)


def test_a_name_has_its_address(pair: Pair) -> None:
    known = guests.read_guests(Store(), "lab")
    assert use(pair, "nat") == {name: f"{known[name].address}/24" for name in pair}


def test_the_host_finds_them_by_name(pair: Pair, host: managed.Host) -> None:
    use(pair, "nat")
    address = next(line.split()[0] for line in host.names().splitlines() if "web1.lab" in line.split())
    subprocess.run(["busybox", "ping", "-c", "3", "-W", "5", address], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_they_reach_the_world(pair: Pair, kind: str) -> None:
    if kind == "bridge":
        pytest.skip("leads nowhere else")
    use(pair, kind)
    assert "3 packets received" in pair["web1"].run("ping -c 3 198.51.100.1")
