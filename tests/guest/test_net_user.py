"""A Linux guest of an ordinary user behind passt: it has an address, names, the world, and a port of the host's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.fakes.host import NOBODY, private_dev, public_directory
from tests.guest.booted import DISK_SIZE, PROBE, Booted
from tests.guest.linux import MIB, LinuxGuest, make_disk
from tests.guest.transfer import end_serving, fetch, fetch_here, serve
from tests.net import managed

pytestmark = [pytest.mark.guest, pytest.mark.net, pytest.mark.root]

SIZES_MIB = (1, pytest.param(20, marks=pytest.mark.slow))
#: Beyond the host's router: a name server, and files.
WORLD = "198.51.100.1"
DNSMASQ = (
    "exec dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file --no-resolv --no-hosts --bind-interfaces "
    f"--listen-address={WORLD} --local=/example/ --host-record=files.example,{WORLD}"
)


@pytest.fixture(scope="module")
def directory() -> Iterator[str]:
    """The user's own."""
    with public_directory() as made:
        os.chown(made, 65534, 65534)
        yield made


@pytest.fixture(scope="module")
def disk(directory: str) -> str:
    """What the guest and the world send each other."""
    disk = make_disk(os.path.join(directory, "data.img"), 20 * MIB)
    os.truncate(disk, DISK_SIZE)
    return disk


@pytest.fixture(scope="module")
def world(directory: str, disk: str) -> Iterator[None]:
    """The tests of this file run in a namespace whose router leads to `WORLD`."""
    with managed.host(directory) as host:
        httpd = f"exec busybox httpd -f -p {WORLD}:80 -h {directory}"
        servers = [subprocess.Popen(host.router.command(command)) for command in (DNSMASQ, httpd)]
        try:
            yield
        finally:
            for server in servers:
                server.kill()
                server.wait()


@pytest.fixture(scope="module")
def guest(small: Booted, directory: str, disk: str, world: None) -> Iterator[LinuxGuest]:
    """It has asked for its address, and has the disk."""
    disks, own = 2 * ("--disk", f"{disk},readonly"), small.copy(directory)
    resolver = os.path.join(directory, "resolv.conf")
    with open(resolver, "w") as file:
        file.write(f"nameserver {WORLD}\n")
    before = private_dev("mknod -m 666 /dev/kvm c 10 232", f"mount --bind {resolver} /etc/resolv.conf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYVMM_CACHE", os.path.join(directory, "none"))
        made = own.go_on(*disks, net="user,hostfwd=tcp:2222-:80", before=(*before, *NOBODY))
    with closing(made):
        made.run(PROBE)
        made.run("udhcpc -n -q -f")
        yield made


def test_it_has_the_hosts_address_and_the_large_mtu(guest: LinuxGuest) -> None:
    assert "inet 192.0.2.2/24 " in guest.run("ip -4 address show eth0")
    assert guest.run("cat /sys/class/net/eth0/mtu") == "32768"


def test_it_finds_names(guest: LinuxGuest) -> None:
    assert WORLD in guest.run("nslookup files.example")


@pytest.mark.parametrize("size_mib", SIZES_MIB)
def test_mib_from_the_world(guest: LinuxGuest, directory: str, size_mib: int) -> None:
    with open(os.path.join(directory, "data.img"), "rb") as whole, open(os.path.join(directory, "data"), "wb") as part:
        part.write(whole.read(size_mib * MIB))
    fetch(guest, "http://files.example/data", whole.name, size_mib)


@pytest.mark.parametrize("size_mib", SIZES_MIB)
def test_mib_by_a_forwarded_port(guest: LinuxGuest, disk: str, size_mib: int) -> None:
    serve(guest, size_mib)
    fetch_here("127.0.0.1", disk, size_mib, port=2222)
    end_serving(guest)
