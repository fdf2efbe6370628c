"""`pyvmm net capture`: what passes a device, as a file that other tools read."""

from __future__ import annotations

import io
import os
import struct
import threading

import pytest

from tests.net.managed import Host
from vmm.errors import BackendError
from vmm.host.net.capture import Capture
from vmm.host.net.create import create_nat
from vmm.host.net.store import Store

from .namespace import ip

pytestmark = pytest.mark.net


def packets(pcap: bytes) -> list[bytes]:
    """The frames in the file *pcap*."""
    magic, major, minor, _, _, snaplen, link_type = struct.unpack_from("<IHHiIII", pcap)
    assert (magic, major, minor, snaplen, link_type) == (0xA1B23C4D, 2, 4, 262144, 1)
    frames, offset = [], 24
    while offset < len(pcap):
        seconds, nanoseconds, captured, size = struct.unpack_from("<IIII", pcap, offset)
        assert seconds > 1_700_000_000
        assert nanoseconds < 1_000_000_000
        assert captured == size
        frames.append(pcap[offset + 16 : offset + 16 + captured])
        offset += 16 + captured
    return frames


def test_what_passes_between_guests_is_captured(host: Host, store: Store) -> None:
    create_nat(store, "lab")
    here, there = host.guest("lab"), host.guest("lab")
    address = host.lease(there)[0]
    host.lease(here)
    output = io.BytesIO()
    stop, stopped = os.pipe()
    capture = Capture("lab")
    writer = threading.Thread(target=lambda: capture.write(output, count=None, seconds=None, stop_fd=stop))
    writer.start()
    assert here.pings(address)
    os.close(stopped)
    writer.join()
    capture.close()
    os.close(stop)
    assert any(frame[12:14] == b"\x08\0" and frame[23] == 1 for frame in packets(output.getvalue()))


@pytest.mark.parametrize("limit", [{"count": 2, "seconds": None}, {"count": None, "seconds": 0.2}])
def test_it_ends_by_itself(host: Host, store: Store, limit: dict[str, int | None]) -> None:
    create_nat(store, "lab")
    stop, stopped = os.pipe()
    capture = Capture("lab")
    host.guest("lab").run("ip link set eth0 up; (busybox arping -c 3 -I eth0 10.77.0.1 >/dev/null 2>&1 &)")
    output = io.BytesIO()
    written = capture.write(output, stop_fd=stop, **limit)
    assert len(packets(output.getvalue())) == written
    assert limit["count"] in (None, written)
    capture.close()
    os.close(stop)
    os.close(stopped)


def test_no_such_device(host: Host) -> None:
    with pytest.raises(BackendError, match="nothing: cannot capture: No such device"):
        Capture("nothing")


def test_a_device_that_goes_away(host: Host) -> None:
    ip("link add br9 type bridge")
    ip("link set br9 up")
    stop, stopped = os.pipe()
    capture = Capture("br9")
    ip("link del br9")
    with pytest.raises(BackendError, match="br9: cannot capture any more: "):
        capture.write(io.BytesIO(), count=None, seconds=5, stop_fd=stop)
    capture.close()
    os.close(stop)
    os.close(stopped)
