"""Two Linux guests on a managed network: each is given an address and a name, and what they send arrives."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator

import pytest

from tests.guest.linux import MIB, Image, LinuxGuest, make_disk, sha256
from tests.net import managed
from vmm.host.net import guests, networks
from vmm.host.net.create import create_nat
from vmm.host.net.store import Store

pytestmark = [pytest.mark.guest, pytest.mark.net]

NAMES = ("web1", "web2")
#: Where ring 0 is interpreted, some 200 kB/s.
TRANSFER_S = 600

Pair = dict[str, LinuxGuest]


@pytest.fixture(scope="module")
def host() -> Iterator[managed.Host]:
    """A host with the network `lab`; it has forgotten it in the end."""
    with (
        tempfile.TemporaryDirectory(prefix="pyvmm-net-") as directory,  # dnsmasq may not enter pytest's own
        pytest.MonkeyPatch.context() as patch,
        managed.host(directory) as made,
    ):
        patch.setenv("PYVMM_STATE", made.directory)
        patch.setenv("PYVMM_HOSTS", made.hosts)
        before = managed.state(made)
        create_nat(Store(), "lab")
        yield made
        networks.delete(Store(), "lab")
        assert managed.state(made) == before


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the first guest sends."""
    return make_disk(os.path.join(tmp_path_factory.mktemp("nat"), "data.img"), 20 * MIB)


@pytest.fixture(scope="module")
def pair(micro: Image, host: managed.Host, disk: str) -> Iterator[Pair]:
    """Guests by name, each with the address that it asked for; the first has the disk."""
    pair = {}
    for name, more in zip(NAMES, (("-d", disk), ()), strict=True):
        pair[name] = LinuxGuest(
            "-k", micro.kernel(), "-i", micro.initrd, "-m", "128M", "-n", f"lab,name={name}", *more,
            "-a", "quiet root=",
        )  # fmt: skip
    try:
        for guest in pair.values():
            guest.wait_for_prompt()
            guest.run("udhcpc -n -q -f")
        yield pair
    finally:
        for guest in pair.values():
            guest.close()


def test_each_gets_the_address_of_its_name(pair: Pair) -> None:
    known = guests.read_guests(Store(), "lab")
    for name, guest in pair.items():
        assert f"inet {known[name].address}/24 " in guest.run("ip -4 address show eth0")


def test_they_find_each_other_by_name(pair: Pair) -> None:
    for guest, other in zip(pair.values(), reversed(pair), strict=True):
        assert "3 packets received" in guest.run(f"ping -c 3 {other}")


def test_the_host_finds_them_by_name(pair: Pair, host: managed.Host) -> None:
    address = next(line.split()[0] for line in host.names().splitlines() if "web1.lab" in line.split())
    subprocess.run(["busybox", "ping", "-c", "3", "-W", "5", address], check=True)


def test_they_reach_the_world(pair: Pair) -> None:
    assert "3 packets received" in pair["web1"].run("ping -c 3 198.51.100.1")


@pytest.mark.parametrize("size_mib", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_mib_from_guest_to_guest(pair: Pair, disk: str, size_mib: int) -> None:
    server, client = pair.values()
    server.run(f"mkdir -p /run/www && dd if=/dev/vda of=/run/www/data bs=1M count={size_mib} iflag=direct", TRANSFER_S)
    server.run("httpd -h /run/www")
    client.run("wget -q -O /run/data http://web1/data", TRANSFER_S)
    server.run("killall httpd; rm /run/www/data")
    assert client.run("sha256sum /run/data; rm /run/data", TRANSFER_S).split()[0] == sha256(disk, size_mib * MIB)
