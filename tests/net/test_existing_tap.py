"""`--net tap=NAME`: frames through a tap that the user made, and what is said when it cannot be used."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from vmm.errors import BackendError, ConfigError
from vmm.host.tap import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO_ECN, TUN_F_USO, TUN_F_USO4, Tap, open_tap

from .frames import ETHERTYPE_TEST, GUEST_MAC, arp_request, await_frame, receive, send, udp_frame
from .namespace import await_carrier, ip, links, network_namespace, without_net_admin

pytestmark = pytest.mark.net

TUNGETVNETHDRSZ = 0x800454D7  # linux/if_tun.h

HOLD = """
import sys, time
from vmm.host.tap import open_tap
tap = open_tap(sys.argv[1])
print("ready", flush=True)
time.sleep(60)
"""


@contextlib.contextmanager
def held(name: str) -> Iterator[int]:
    """Another process has the tap open; its pid."""
    with subprocess.Popen([sys.executable, "-c", HOLD, name], stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        try:
            assert holder.stdout.readline() == b"ready\n"
            yield holder.pid
        finally:
            holder.kill()


@contextlib.contextmanager
def opened(name: str) -> Iterator[Tap]:
    """The tap, once its carrier has come up."""
    with contextlib.closing(open_tap(name)) as tap:
        await_carrier(name)
        yield tap


def test_frames_go_both_ways(tap_name: str) -> None:
    with opened(tap_name) as tap:
        assert send(tap, arp_request(b"\x0a\x00\x00\x01"))
        header, reply = receive(tap, b"\x08\x06")
        assert header[:2] == b"\0\0"
        assert reply[:6] == GUEST_MAC
        assert reply[20:22] == b"\0\x02"  # an ARP reply
        assert reply[28:32] == b"\x0a\x00\x00\x01"


def test_a_frame_is_scattered_and_cut(tap_name: str) -> None:
    with opened(tap_name) as tap:
        assert send(tap, arp_request(b"\x0a\x00\x00\x01"))
        await_frame(tap)
        parts = [bytearray(size) for size in (5, 7, 6, 10)]
        assert tap.queues[0].readv([memoryview(part) for part in parts]) == 28
        assert parts[2] == GUEST_MAC


def test_nothing_waits(tap_name: str) -> None:
    with opened(tap_name) as tap:
        assert tap.queues[0].readv([memoryview(bytearray(2048))]) == 0


def test_the_descriptor_is_close_on_exec_and_does_not_block(tap_name: str) -> None:
    with opened(tap_name) as tap:
        assert not os.get_inheritable(tap.queues[0].fileno())
        assert not os.get_blocking(tap.queues[0].fileno())


def test_malformed_frames_are_dropped(tap_name: str) -> None:
    with opened(tap_name) as tap:
        assert not tap.queues[0].writev([])
        assert not tap.queues[0].writev([memoryview(bytes(11))])  # shorter than its header
        assert not send(tap, b"too short")
        assert not send(tap, arp_request(b"\x0a\x00\x00\x01"), header=b"\x00\x7f" + b"\xff" * 10)  # no such GSO type
        assert not tap.queues[0].writev([memoryview(bytes(1))] * 5000)
        assert send(tap, arp_request(b"\x0a\x00\x00\x01"))


def test_buffers_too_small_for_a_header_lose_the_frame(tap_name: str) -> None:
    with opened(tap_name) as tap:
        assert send(tap, arp_request(b"\x0a\x00\x00\x01"))
        await_frame(tap)
        assert tap.queues[0].readv([memoryview(bytearray(11))]) == 0


def test_frames_sent_while_the_tap_is_down_are_dropped(tap_name: str) -> None:
    with opened(tap_name) as tap:
        ip("link set tap0 down")
        assert not send(tap, arp_request(b"\x0a\x00\x00\x01"))
        ip("link set tap0 up")
        assert send(tap, arp_request(b"\x0a\x00\x00\x01"))


def test_offloads(tap_name: str) -> None:
    ip("neigh add 10.0.0.2 lladdr 52:54:00:00:00:01 dev tap0")
    with opened(tap_name) as tap, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for flags, needs_checksum in ((0, 0), (TUN_F_CSUM | TUN_F_TSO4, 1), (TUN_F_TSO4, 0), (TUN_F_TSO_ECN, 0)):
            tap.set_offload(flags)
            udp.sendto(b"hello", ("10.0.0.2", 9))
            header, frame = receive(tap, b"\x08\x00")
            assert frame.endswith(b"hello")
            assert header[0] & 1 == needs_checksum  # VIRTIO_NET_HDR_F_NEEDS_CSUM


def test_offloads_of_the_last_user_are_gone(tap_name: str) -> None:
    ip("neigh add 10.0.0.2 lladdr 52:54:00:00:00:01 dev tap0")
    with opened(tap_name) as tap:
        tap.set_offload(TUN_F_CSUM)
    with opened(tap_name) as tap, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"hello", ("10.0.0.2", 9))
        assert receive(tap, b"\x08\x00")[0][0] == 0


def test_a_tap_outlives_its_user(tap_name: str, nothing_left: None) -> None:
    open_tap(tap_name).close()
    tap = open_tap(tap_name)
    tap.close()
    tap.close()


def test_a_deleted_tap_is_an_error(tap_name: str) -> None:
    with contextlib.closing(open_tap(tap_name)) as tap:
        ip("link del tap0")
        with pytest.raises(OSError, match="File descriptor in bad state") as caught:
            tap.queues[0].readv([memoryview(bytearray(2048))])
        with pytest.raises(BackendError, match=r"^tap tap0: cannot read: File descriptor in bad state"):
            tap.queues[0].mend(caught.value.errno or 0)
        assert not send(tap, arp_request(b"\x0a\x00\x00\x01"))


def test_the_mtu_is_the_taps_or_less(tap_name: str) -> None:
    ip("link set tap0 mtu 1400")
    for wanted, got in ((None, 1400), (1400, 1400), (1280, 1280)):
        with contextlib.closing(open_tap(tap_name, wanted)) as tap:
            assert tap.mtu == got
    assert "mtu 1400" in ip("link show tap0")


def test_a_larger_mtu_is_refused(tap_name: str, nothing_left: None) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tap(tap_name, 9000)
    assert str(caught.value) == (
        "tap tap0: mtu=9000 is more than the 1500 that tap0 carries\n"
        "  ask for mtu=1500, or run: sudo ip link set tap0 mtu 9000"
    )


def test_a_missing_tap_is_not_made(netns: None, nothing_left: None) -> None:
    with pytest.raises(BackendError) as caught:
        open_tap("tap9")
    assert str(caught.value) == (
        "tap tap9: there is no such device\n"
        "  run: sudo ip tuntap add dev tap9 mode tap user $USER && sudo ip link set tap9 up"
    )
    with pytest.raises(BackendError, match="no such device"):
        open_tap("tap%d")


def test_a_tun_is_no_tap(netns: None) -> None:
    ip("tuntap add dev tun0 mode tun")
    with pytest.raises(BackendError) as caught:
        open_tap("tun0")
    assert str(caught.value) == (
        "tap tun0: is a tun device (IP packets), not a tap (Ethernet frames)\n"
        "  run: sudo ip link del tun0 && sudo ip tuntap add dev tun0 mode tap user $USER && sudo ip link set tun0 up"
    )


def test_a_bridge_is_no_tap(bridge: str, nothing_left: None) -> None:
    with pytest.raises(BackendError) as caught:
        open_tap(bridge)
    assert str(caught.value) == (
        "tap br0: is no tap, but a bridge device\n"
        "  choose another name, and run: sudo ip tuntap add dev NAME mode tap user $USER && sudo ip link set NAME up"
    )


def test_loopback_is_no_tap(netns: None) -> None:
    with pytest.raises(BackendError, match=r"^tap lo: is no tap, but a physical device"):
        open_tap("lo")


# Several queues.


def test_a_multi_queue_tap_used_with_one_queue(multi_queue: str) -> None:
    with opened(multi_queue) as tap:
        assert send(tap, arp_request(b"\x0a\x00\x00\x01"))
        assert receive(tap, b"\x08\x06")[1][:6] == GUEST_MAC


def test_each_queue_gets_the_flows_it_sends(multi_queue: str) -> None:
    """VIRTIO 1.2 §5.1.6.5.5.1: incoming packets of a flow come to the queue of the pair that sent for it."""
    with contextlib.closing(open_tap(multi_queue, queues=3)) as tap:
        tap.enable(3)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("10.0.0.1", 9))
            ip("neigh add 10.0.0.2 lladdr 52:54:00:00:00:01 dev tap0")
            for queue in (2, 0, 1):
                assert send(tap, udp_frame(b"\x0a\0\0\2", b"\x0a\0\0\1", 1000 + queue, 9), queue=queue)
                time.sleep(0.05)
                udp.sendto(b"hello", ("10.0.0.2", 1000 + queue))
                assert receive(tap, b"\x08\0", queue=queue)[1].endswith(b"hello")


def test_queues_are_switched_off_and_on(multi_queue: str) -> None:
    with contextlib.closing(open_tap(multi_queue, queues=3)) as tap:
        for count in (1, 3, 2, 3):
            if count != 1:  # as it is at first
                tap.enable(count)
            shown = ip("-details link show tap0")
            assert f"numqueues {count} " in shown
            assert f"numdisabled {3 - count} " in shown


def test_a_tap_with_one_queue_is_not_enough(tap_name: str, nothing_left: None) -> None:
    with pytest.raises(BackendError) as caught:
        open_tap(tap_name, queues=2)
    assert str(caught.value) == (
        "tap tap0: has one queue, not 2\n"
        "  run: sudo ip link del tap0 && "
        "sudo ip tuntap add dev tap0 mode tap user $USER multi_queue && sudo ip link set tap0 up"
    )


@pytest.mark.parametrize("queues", [1, 2])
def test_a_multi_queue_tap_is_not_shared(multi_queue: str, nothing_left: None, queues: int) -> None:
    with held(multi_queue) as pid, pytest.raises(BackendError, match=rf"is in use by .* \(pid {pid}\)"):
        open_tap(multi_queue, queues=queues)


def test_udp_is_segmented_where_the_kernel_can(tap_name: str) -> None:
    with contextlib.closing(open_tap(tap_name)) as tap:
        assert tap.segments_udp
        tap.set_offload(TUN_F_CSUM | TUN_F_USO)
        tap.set_offload(TUN_F_CSUM | TUN_F_USO4)  # one without the other is left out


def test_a_busy_tap_names_its_holder(tap_name: str, nothing_left: None) -> None:
    with held(tap_name) as pid:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as comm:
            program = comm.read().strip()
        with pytest.raises(BackendError) as caught:
            open_tap(tap_name)
    assert str(caught.value) == (
        f"tap tap0: is in use by {program} (pid {pid})\n"
        "  end that process, or make a tap for this guest: "
        "sudo ip tuntap add dev NAME mode tap user $USER && sudo ip link set NAME up"
    )


def test_a_tap_of_that_name_elsewhere_is_not_the_holder(tap_name: str) -> None:
    with contextlib.ExitStack() as stack:
        with network_namespace():
            ip("tuntap add dev tap0 mode tap")
            ip("link set tap0 up")
            elsewhere = stack.enter_context(held("tap0"))
        here = stack.enter_context(held(tap_name))
        with pytest.raises(BackendError) as caught:
            open_tap(tap_name)
    assert f"(pid {here})" in str(caught.value)
    assert str(elsewhere) not in str(caught.value)


def test_a_tap_of_another_user_names_its_owner(netns: None) -> None:
    ip("tuntap add dev tap0 mode tap user nobody")
    with without_net_admin(), pytest.raises(BackendError) as caught:
        open_tap("tap0")
    assert str(caught.value) == (
        "tap tap0: belongs to user nobody, and this is root\n"
        "  run pyvmm as its owner, or run: sudo ip link del tap0 && "
        "sudo ip tuntap add dev tap0 mode tap user $USER && sudo ip link set tap0 up"
    )


def test_the_owner_needs_no_privilege(netns: None) -> None:
    ip("tuntap add dev tap0 mode tap user root")
    ip("link set tap0 up")
    with without_net_admin(), contextlib.closing(open_tap("tap0")) as tap:
        assert send(tap, b"\xff" * 6 + GUEST_MAC + ETHERTYPE_TEST + bytes(50))


def test_a_tap_that_is_down(netns: None) -> None:
    ip("tuntap add dev tap0 mode tap")
    with pytest.raises(BackendError) as caught:
        open_tap("tap0")
    assert str(caught.value) == "tap tap0: the device is down\n  run: sudo ip link set tap0 up"
    assert links() == {"lo", "tap0"}


def test_the_frame_header_has_twelve_bytes(tap_name: str) -> None:
    with contextlib.closing(open_tap(tap_name)) as tap:
        size = fcntl.ioctl(tap.queues[0].fileno(), TUNGETVNETHDRSZ, bytes(4))
        assert int.from_bytes(size, "little") == 12
