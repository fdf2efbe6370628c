"""Two Linux guests of an ordinary user on a lan: addresses and names are given to them, and what they send arrives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from tests.fakes.host import KVM_FOR_ALL, NOBODY
from tests.guest.booted import PROBE, Booted
from tests.guest.linux import LinuxGuest
from tests.guest.transfer import end_serving, fetch, serve

pytestmark = [pytest.mark.guest, pytest.mark.root]

Pair = dict[str, LinuxGuest]


@pytest.fixture(scope="module")
def pair(small: Booted, user_directory: str, user_disk: str) -> Iterator[Pair]:
    """Guests by name, each with the disk and the address that it asked for."""
    own = small.copy(user_directory)
    pair = {}
    with ExitStack() as ends:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", user_directory)
            patch.setenv("PYVMM_CACHE", os.path.join(user_directory, "none"))
            for name in ("db", "web"):
                guest = own.go_on(disk=user_disk, net=f"lan=lab,name={name}", before=(*KVM_FOR_ALL, *NOBODY))
                pair[name] = ends.enter_context(closing(guest))
        for guest in pair.values():
            guest.run(PROBE)
            guest.run("udhcpc -n -q -f")
        yield pair


def test_each_gets_an_address_of_its_own(pair: Pair) -> None:
    addresses = {guest.run("ip -4 -o address show eth0").split()[3] for guest in pair.values()}
    assert len(addresses) == 2
    assert all(address.startswith("10.78.") and address.endswith("/16") for address in addresses)


def test_they_find_each_other_by_name(pair: Pair) -> None:
    assert "3 packets received" in pair["db"].run("ping -c 3 web")
    assert "3 packets received" in pair["web"].run("ping -c 3 db.lab")


@pytest.mark.parametrize("size_mib", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_mib_from_guest_to_guest(pair: Pair, user_disk: str, size_mib: int) -> None:
    serve(pair["db"], size_mib)
    fetch(pair["web"], "http://db/data", user_disk, size_mib)
    end_serving(pair["db"])
