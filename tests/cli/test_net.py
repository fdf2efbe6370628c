"""`--net`: what can be wrong with bridges and taps, and that nothing of ours remains on the host."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Pyvmm, finish
from tests.fakes.guest import EMPTY_GATES, HANG, POWER_OFF, RESET_BY_ACPI, UNDEFINED, say
from tests.net.namespace import ip, links, network_namespace
from vmm.host.tap import open_tap

pytestmark = [pytest.mark.kvm, pytest.mark.net]

NO_CAPABILITIES = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")


@pytest.fixture(autouse=True)
def netns() -> Iterator[None]:
    """A network namespace with a bridge and a persistent tap; no run may leave more, or less."""
    with network_namespace():
        ip("link add br0 type bridge")
        ip("link set br0 up")
        ip("tuntap add dev tap0 mode tap")
        ip("link set tap0 up")
        yield
        assert links() == {"lo", "br0", "tap0"}


@pytest.mark.parametrize("net", ["bridge=br0", "tap=tap0"])
def test_a_card_leaves_nothing(pyvmm: Pyvmm, net: str) -> None:
    assert pyvmm(*pyvmm.guest(POWER_OFF), "--net", net).code == 0
    assert pyvmm(*pyvmm.guest(EMPTY_GATES, UNDEFINED), "--net", net).code == 121


def test_a_killed_run_leaves_no_tap(pyvmm: Pyvmm) -> None:
    with pyvmm.start(*pyvmm.guest(say("up\n"), HANG), "--net", "bridge=br0") as process:
        assert process.stdout
        process.stdout.readline()
        assert "pyvmm0" in links()
        process.kill()
    deadline = time.monotonic() + 5
    while "pyvmm0" in links() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_tap_outlives_the_guests_reboot(pyvmm: Pyvmm) -> None:
    with pyvmm.start(*pyvmm.guest(say("up\n"), RESET_BY_ACPI), "--net", "bridge=br0") as process:
        assert process.stdout
        process.stdout.readline()
        before = json.loads(ip("-json link show pyvmm0"))[0]["ifindex"]
        for _ in range(3):
            process.stdout.readline()
        assert json.loads(ip("-json link show pyvmm0"))[0]["ifindex"] == before
        process.terminate()
        finish(process)


def test_several_cards(pyvmm: Pyvmm) -> None:
    with pyvmm.start(
        *pyvmm.guest(say("up\n"), HANG), "--net", "bridge=br0", "--net", "tap=tap0", "--net", "bridge=br0"
    ) as process:
        assert process.stdout
        process.stdout.readline()
        assert links() >= {"pyvmm0", "pyvmm1"}
        process.terminate()
        assert finish(process).code == 123


def test_a_missing_bridge(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--net", "bridge=br7")
    assert (run.code, run.messages) == (
        125,
        (
            "pyvmm: bridge br7: there is no such bridge\n"
            "  run: sudo ip link add br7 type bridge && sudo ip link set br7 up\n"
        ),
    )


def test_a_missing_tap(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--net", "tap=tap7")
    assert (run.code, run.messages) == (
        125,
        (
            "pyvmm: tap tap7: there is no such device\n"
            "  run: sudo ip tuntap add dev tap7 mode tap user $USER && sudo ip link set tap7 up\n"
        ),
    )


def test_a_tap_that_another_vm_has_names_it(pyvmm: Pyvmm) -> None:
    with pyvmm.start(*pyvmm.guest(say("up\n"), HANG), "--net", "tap=tap0") as holder:
        assert holder.stdout
        holder.stdout.readline()
        run = pyvmm(*pyvmm.guest(HANG), "--net", "tap=tap0")
        assert run.code == 125
        assert run.messages.startswith(
            f"pyvmm: tap tap0: is in use by pyvmm (pid {holder.pid})\n  end that process, or "
        )
        holder.terminate()
        finish(holder)
    open_tap("tap0").close()


def test_no_right_to_make_a_tap(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--net", "bridge=br0", before=NO_CAPABILITIES)
    assert (run.code, run.messages) == (
        125,
        (
            "pyvmm: bridge br0: this needs CAP_NET_ADMIN, or pyvmm-net-helper, which is not set up\n"
            "  run pyvmm with sudo, or take --net user, which needs no right, or once run: "
            "pyvmm-net-helper --print-units | sudo sh\n"
            "  and say in /etc/pyvmm/net.toml who may join which network\n"
        ),
    )


def test_an_mtu_that_the_bridge_does_not_carry(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--net", "bridge=br0,mtu=9000")
    assert run.code == 2
    assert run.messages.startswith("pyvmm: bridge br0: mtu=9000 is more than the 1500 that br0 carries\n")


def test_a_name_that_no_device_has(pyvmm: Pyvmm) -> None:
    run = pyvmm(*pyvmm.guest(HANG), "--net", "bridge=a-name-that-is-too-long")
    assert run.code == 2
    assert "cannot be the name of a network device" in run.messages
