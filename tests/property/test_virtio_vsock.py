"""VIRTIO 1.2 §5.10.6: whatever a driver puts into packets, the device keeps going and keeps to its bounds."""

from __future__ import annotations

import os
import tempfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.vsock import CID, Guest
from vmm.virtio.spec import Status
from vmm.virtio.vsock import RESETS_MAX, STREAMS_MAX
from vmm.virtio.vsock_stream import BUFFER_BYTES, HEADER

_PORTS = st.sampled_from([700, 701, 5000, 1 << 30, (1 << 30) + 1, 0xFFFF_FFFF])
_U32 = st.one_of(st.sampled_from([0, 1, 44, 4096, 0x7FFF_FFFF, 0xFFFF_FFFF]), st.integers(0, 0xFFFF_FFFF))


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Headers, most of them nearly right, and data that may be of another length than they say."""
    data = draw(st.binary(max_size=200))
    size = draw(st.one_of(st.just(len(data)), _U32))
    source, target = draw(st.sampled_from([CID, CID, CID, 2])), draw(st.sampled_from([2, 2, 2, CID]))
    kind = draw(st.sampled_from([1, 1, 1, 2]))
    op, flags = draw(st.integers(0, 9)), draw(st.integers(0, 3))
    guest_port, host_port = draw(_PORTS), draw(_PORTS)
    header = (source, target, guest_port, host_port, size, kind, op, flags, draw(_U32), draw(_U32))
    whole = HEADER.pack(*header) + data
    return whole[: draw(st.integers(1, len(whole)))] if draw(st.integers(0, 9)) == 0 else whole


#: What happens next: a packet, a client that connects or that sends, or buffers to receive into.
steps = st.lists(
    st.one_of(packets(), st.sampled_from(["connect", "send", "close", "receive", "stop receiving"])), max_size=40
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps)
def test_packets_of_any_kind_are_answered_or_dropped(happening: list[bytes | str]) -> None:
    """§5.10.6.4.2: the device must send RST in reply to a packet that has no connection; nothing else ends it."""
    with tempfile.TemporaryDirectory() as directory:
        guest = Guest(os.path.join(directory, "vsock"))
        try:
            with guest.listener(700):
                clients = []
                for step in happening:
                    if isinstance(step, bytes):
                        guest.send_raw(step)
                    elif step == "connect":
                        clients.append(guest.client(b"CONNECT 5000\n"))
                    elif step == "receive":
                        guest.receive()
                    elif step == "stop receiving":
                        guest.receive(refill=False)
                    elif clients and step == "close":
                        clients.pop().close()
                    elif clients:
                        _send(clients[-1])
                    guest.settle()
                    device = guest.device
                    assert len(device._resets) <= RESETS_MAX
                    assert len(device._by_fd) + len(device._clients) <= STREAMS_MAX
                    assert len(device._ready) <= 2 * STREAMS_MAX
                    assert all(len(stream.waiting) <= BUFFER_BYTES for stream in device._by_fd.values())
                assert not guest.rig.driver.status & Status.DEVICE_NEEDS_RESET
        finally:
            guest.close()


def _send(client: object) -> None:
    import contextlib
    import socket

    assert isinstance(client, socket.socket)
    with contextlib.suppress(OSError):
        client.send(bytes(1000))
