"""A Linux guest of an ordinary user behind passt: it has an address, names, the world, and a port of the host's."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.fakes.host import NOBODY, private_dev
from tests.guest.booted import PROBE, Booted
from tests.guest.linux import MIB, LinuxGuest
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
def world(user_directory: str, user_disk: str) -> Iterator[None]:
    """The tests of this file run in a namespace whose router leads to `WORLD`."""
    with managed.host(user_directory) as host:
        httpd = f"exec busybox httpd -f -p {WORLD}:80 -h {user_directory}"
        servers = [subprocess.Popen(host.router.command(command)) for command in (DNSMASQ, httpd)]
        try:
            yield
        finally:
            for server in servers:
                server.kill()
                server.wait()


@pytest.fixture(scope="module")
def guest(small: Booted, user_directory: str, user_disk: str, world: None) -> Iterator[LinuxGuest]:
    """It has asked for its address, and has the disk."""
    own = small.copy(user_directory)
    resolver = os.path.join(user_directory, "resolv.conf")
    with open(resolver, "w") as file:
        file.write(f"nameserver {WORLD}\n")
    before = private_dev("mknod -m 666 /dev/kvm c 10 232", f"mount --bind {resolver} /etc/resolv.conf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYVMM_CACHE", os.path.join(user_directory, "none"))
        made = own.go_on(disk=user_disk, net="user,hostfwd=tcp:2222-:80", before=(*before, *NOBODY))
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
def test_mib_from_the_world(guest: LinuxGuest, user_directory: str, user_disk: str, size_mib: int) -> None:
    with open(user_disk, "rb") as whole, open(os.path.join(user_directory, "data"), "wb") as part:
        part.write(whole.read(size_mib * MIB))
    fetch(guest, "http://files.example/data", user_disk, size_mib)


@pytest.mark.parametrize("size_mib", SIZES_MIB)
def test_mib_by_a_forwarded_port(guest: LinuxGuest, user_disk: str, size_mib: int) -> None:
    serve(guest, size_mib)
    fetch_here("127.0.0.1", user_disk, size_mib, port=2222)
    end_serving(guest)
