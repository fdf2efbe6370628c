"""`--net bridge=BR`: a tap for one run, on the user's bridge, that nothing remains of."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from vmm.errors import BackendError, ConfigError
from vmm.host.net.bridge import create_bridge_tap

from .frames import BROADCAST, ETHERTYPE_TEST, GUEST_MAC, arp_request, receive, send
from .namespace import ip, links, without_net_admin

pytestmark = pytest.mark.net

HOLD = """
import time
from vmm.host.net.bridge import create_bridge_tap
taps = [create_bridge_tap("br0"), create_bridge_tap("br0")]
print(*[tap.name for tap in taps], flush=True)
time.sleep(60)
"""


def show(name: str) -> dict[str, Any]:
    """What `ip` knows of the device *name*."""
    shown: dict[str, Any] = json.loads(ip(f"-json -details address show {name}"))[0]
    return shown


def test_the_tap_is_on_the_bridge_and_up(bridge: str) -> None:
    with contextlib.closing(create_bridge_tap(bridge)) as tap:
        device = show(tap.name)
        assert tap.name == "pyvmm0"
        assert device["master"] == bridge
        assert "UP" in device["flags"]
        assert device["linkinfo"]["info_data"]["persist"] is False
        assert device["linkinfo"]["info_data"]["vnet_hdr"] is True


def test_the_hosts_end_has_no_addresses(bridge: str) -> None:
    with contextlib.closing(create_bridge_tap(bridge)) as tap:
        assert show(tap.name)["addr_info"] == []


def test_the_host_answers_on_the_bridge(bridge: str) -> None:
    with contextlib.closing(create_bridge_tap(bridge)) as tap:
        assert send(tap, arp_request(b"\x0a\x00\x00\x01"))
        assert receive(tap, b"\x08\x06")[1][28:32] == b"\x0a\x00\x00\x01"


def test_two_taps_reach_each_other(bridge: str) -> None:
    with contextlib.closing(create_bridge_tap(bridge)) as one, contextlib.closing(create_bridge_tap(bridge)) as two:
        assert one.name != two.name
        frame = BROADCAST + GUEST_MAC + ETHERTYPE_TEST + b"from one to two" + bytes(60)
        assert send(one, frame)
        assert receive(two, ETHERTYPE_TEST)[1] == frame


def test_frames_pass_between_a_veth_and_the_tap(bridge: str) -> None:
    ip("link add v0 type veth peer name v1")
    ip("link set v0 master br0 up")
    ip("link set v1 up")
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    with wire, contextlib.closing(create_bridge_tap(bridge)) as tap:
        wire.bind(("v1", 0x88B5))
        wire.settimeout(5)
        there = BROADCAST + b"\x02\0\0\0\0\x07" + ETHERTYPE_TEST + b"from the wire" + bytes(60)
        back = b"\x02\0\0\0\0\x07" + GUEST_MAC + ETHERTYPE_TEST + b"from the guest" + bytes(60)
        wire.send(there)
        assert receive(tap, ETHERTYPE_TEST)[1] == there
        assert send(tap, back)
        assert wire.recv(2048) == back


def test_a_tap_with_several_queues(bridge: str, nothing_left: None) -> None:
    with contextlib.closing(create_bridge_tap(bridge, queues=3)) as tap:
        tap.enable(3)
        assert len(tap.queues) == 3
        assert show(tap.name)["linkinfo"]["info_data"]["numqueues"] == 3
        frame = BROADCAST + GUEST_MAC + ETHERTYPE_TEST + bytes(60)
        assert all(send(tap, frame, queue=queue) for queue in range(3))


def test_closing_takes_the_tap_away(bridge: str, nothing_left: None) -> None:
    tap = create_bridge_tap(bridge)
    assert tap.name in links()
    tap.close()


def test_a_killed_process_leaves_nothing(bridge: str, nothing_left: None) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        try:
            names = set(holder.stdout.readline().split())
            assert names == {"pyvmm0", "pyvmm1"}
            assert names < links()
            assert all(show(name)["master"] == bridge for name in names)
        finally:
            holder.kill()
    deadline = time.monotonic() + 5
    while names & links() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert links() == {"lo", bridge}


def test_the_bridges_mtu_is_the_guests(bridge: str) -> None:
    ip("link set br0 mtu 9000")
    with contextlib.closing(create_bridge_tap(bridge)) as tap:
        assert tap.mtu == 9000
        assert show(tap.name)["mtu"] == 9000
        assert show(bridge)["mtu"] == 9000


def test_a_smaller_mtu_is_the_guests_alone(bridge: str) -> None:
    with contextlib.closing(create_bridge_tap(bridge, mtu=1300)) as tap:
        assert tap.mtu == 1300
        assert show(bridge)["mtu"] == 1500


def test_the_bridge_keeps_its_address(bridge: str) -> None:
    ip("link add v0 type veth peer name v1")
    ip("link set v0 address 02:00:00:00:00:05 master br0 up")
    before = show(bridge)["address"]
    with contextlib.closing(create_bridge_tap(bridge)) as tap:
        assert show(tap.name)["address"].startswith("fe:")
        assert show(bridge)["address"] == before == "02:00:00:00:00:05"


def test_a_missing_bridge(netns: None, nothing_left: None) -> None:
    with pytest.raises(BackendError) as caught:
        create_bridge_tap("br7")
    assert str(caught.value) == (
        "bridge br7: there is no such bridge\n  run: sudo ip link add br7 type bridge && sudo ip link set br7 up"
    )


def test_a_bridge_that_is_down(bridge: str, nothing_left: None) -> None:
    ip("link set br0 down")
    with pytest.raises(BackendError) as caught:
        create_bridge_tap(bridge)
    assert str(caught.value) == "bridge br0: the bridge is down\n  run: sudo ip link set br0 up"


def test_loopback_is_no_bridge(netns: None, nothing_left: None) -> None:
    with pytest.raises(BackendError) as caught:
        create_bridge_tap("lo")
    assert str(caught.value) == (
        "bridge lo: is no bridge, but a physical device\n  run `ip link show type bridge` to see the bridges"
    )


def test_a_tap_is_no_bridge(tap_name: str, nothing_left: None) -> None:
    with pytest.raises(BackendError) as caught:
        create_bridge_tap(tap_name)
    assert str(caught.value) == "bridge tap0: is no bridge, but a tap device\n  use tap=tap0"


def test_a_larger_mtu_is_refused(bridge: str, nothing_left: None) -> None:
    with pytest.raises(ConfigError) as caught:
        create_bridge_tap(bridge, mtu=9000)
    assert str(caught.value) == (
        "bridge br0: mtu=9000 is more than the 1500 that br0 carries\n"
        "  ask for mtu=1500, or run: sudo ip link set br0 mtu 9000"
    )


def test_without_privilege(bridge: str, nothing_left: None) -> None:
    with without_net_admin(), pytest.raises(BackendError) as caught:
        create_bridge_tap(bridge)
    assert str(caught.value) == (
        "bridge br0: cannot make a tap for it: this needs CAP_NET_ADMIN\n"
        "  run pyvmm with sudo, or once make a tap of your own, and use --net tap=NAME:\n"
        "  sudo ip tuntap add dev NAME mode tap user $USER && sudo ip link set NAME master br0 up"
    )


def test_a_bridge_that_refuses_the_tap(bridge: str, nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The bridge goes between the look and the joining: its index is nobody's any more.
    from vmm.host.net import bridge as module

    find = module._find_bridge

    def find_and_delete(*arguments: Any) -> Any:
        found = find(*arguments)
        found.index = 4711
        return found

    monkeypatch.setattr(module, "_find_bridge", find_and_delete)
    with pytest.raises(BackendError, match=r"^bridge br0: cannot add a tap to it: "):
        create_bridge_tap(bridge)
