"""The socket device: streams between a guest and Unix sockets, with credit, and a guest that keeps to no rule."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fakes.vsock import CID, GUEST_PORT, Guest, Packet
from vmm.virtio.spec import Status
from vmm.virtio.vsock import EVENT, RESETS_MAX, RX, STREAMS_MAX, TX
from vmm.virtio.vsock_stream import BUFFER_BYTES, HEADER, RECEIVE, SEND, Op

MakeGuest = Callable[..., Guest]


@pytest.fixture
def make_guest(tmp_path: os.PathLike[str]) -> Iterator[MakeGuest]:
    guests: list[Guest] = []

    def make(**options: Any) -> Guest:
        guests.append(Guest(os.path.join(tmp_path, f"vsock{len(guests)}"), **options))
        return guests[-1]

    yield make
    for guest in guests:
        guest.close()


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    """One whose driver has set the device going, with buffers to receive into."""
    return make_guest()


def ops(packets: list[Packet]) -> list[int]:
    return [packet.op for packet in packets]


# From the host.


@pytest.mark.parametrize("kind", ["mmio", "pci", "intx"])
def test_a_client_reaches_a_port_of_the_guest(make_guest: MakeGuest, kind: str) -> None:
    guest = make_guest(kind=kind)
    client = guest.client(b"CONNECT 5000\n")
    (request,) = guest.receive()
    assert (request.op, request.source, request.target, request.guest_port) == (Op.REQUEST, 2, CID, 5000)
    assert request.buf_alloc == BUFFER_BYTES
    guest.send(Op.RESPONSE, request.host_port, 5000)
    assert client.recv(100) == b"OK %d\n" % request.host_port
    client.sendall(b"hello")
    (packet,) = guest.receive()
    assert (packet.op, packet.data) == (Op.RW, b"hello")
    guest.send(Op.RW, request.host_port, 5000, b"world")
    assert client.recv(100) == b"world"


def test_what_a_client_sends_behind_its_line_is_the_stream_s(guest: Guest) -> None:
    client, port = guest.connected(b"CONNECT 5000\nearly")
    assert [(packet.op, packet.data) for packet in guest.receive()] == [(Op.RW, b"early")]
    client.close()
    assert port >= 1 << 30


def test_a_client_waits_for_the_driver(make_guest: MakeGuest) -> None:
    guest = make_guest(start=False)
    client = guest.client(b"CONNECT 5000\n")
    guest.start()
    assert ops(guest.receive()) == [Op.REQUEST]
    client.close()


def test_a_port_where_nobody_listens_ends_the_connection(guest: Guest) -> None:
    client = guest.client(b"CONNECT 5000\n")
    (request,) = guest.receive()
    guest.send(Op.RST, request.host_port, 5000)
    assert client.recv(100) == b""
    assert guest.receive() == []


@pytest.mark.parametrize(
    "line", [b"GET /\n", b"\n", b"CONNECT\n", b"CONNECT -1\n", b"CONNECT 1 2\n", b"CONNECT 4294967296\n", b"C" * 100]
)
def test_a_client_that_says_something_else_is_hung_up_on(guest: Guest, line: bytes) -> None:
    client = guest.client(line)
    with pytest.raises(ConnectionResetError) if len(line) > 32 else _nothing():
        assert client.recv(100) == b""
    assert guest.receive() == []


def test_a_line_may_come_in_pieces(guest: Guest) -> None:
    client = guest.client(b"CONN")
    assert guest.receive() == []
    client.sendall(b"ECT 5000\n")
    assert ops(guest.receive()) == [Op.REQUEST]


def test_a_line_may_be_written_as_firecracker_lets_it(guest: Guest) -> None:
    guest.connected(b" connect  5000 \r\n")


def test_a_client_that_leaves_in_mid_line_is_forgotten(guest: Guest) -> None:
    guest.client(b"CONN").close()
    guest.settle()
    assert not guest.device._clients


def test_a_client_that_leaves_before_the_answer_ends_the_request(guest: Guest) -> None:
    client = guest.client(b"CONNECT 5000\n")
    guest.receive()
    client.close()
    assert ops(guest.receive()) == [Op.RST]


def test_a_client_waits_while_there_are_no_descriptors(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as exhausted:
        exhausted.setattr(guest.gate, "accept", lambda: None)
        client = guest.client(b"CONNECT 5000\n")
        assert guest.receive() == [], "and nothing spins"
    guest.loop.wait(0.2)
    assert ops(guest.receive()) == [Op.REQUEST]
    client.close()


def test_clients_that_leave_while_the_guest_does_not_listen_leave_nothing(make_guest: MakeGuest) -> None:
    guest = make_guest(buffers=0)
    for _ in range(2 * RESETS_MAX):
        guest.client(b"CONNECT 5000\n").close()
        guest.settle()
    assert not guest.device._resets
    assert not guest.device._by_fd


# From the guest.


def test_the_guest_reaches_a_socket_of_the_host(guest: Guest) -> None:
    with guest.listener(700) as listener:
        guest.send(Op.REQUEST, 700, GUEST_PORT)
        assert ops(guest.receive()) == [Op.RESPONSE]
        server = listener.accept()[0]
        guest.send(Op.RW, 700, GUEST_PORT, b"ping")
        assert server.recv(100) == b"ping"
        server.sendall(b"pong")
        assert [packet.data for packet in guest.receive()] == [b"pong"]
        server.close()


def test_a_port_of_the_host_where_nobody_listens_is_refused(guest: Guest) -> None:
    guest.send(Op.REQUEST, 700, GUEST_PORT)
    (reset,) = guest.receive()
    assert (reset.op, reset.host_port, reset.guest_port) == (Op.RST, 700, GUEST_PORT)


# Credit.


def test_the_host_s_data_waits_for_the_guest_s_credit(guest: Guest) -> None:
    client, port = guest.connected(buf_alloc=10)
    client.sendall(bytes(range(25)))
    assert b"".join(packet.data for packet in guest.receive()) == bytes(range(10))
    guest.send(Op.CREDIT_UPDATE, port, 5000, buf_alloc=10, fwd_cnt=7)
    assert b"".join(packet.data for packet in guest.receive()) == bytes(range(10, 17))
    guest.send(Op.CREDIT_UPDATE, port, 5000, buf_alloc=100, fwd_cnt=17)
    assert b"".join(packet.data for packet in guest.receive()) == bytes(range(17, 25))


@pytest.mark.parametrize(("buf_alloc", "fwd_cnt"), [(0, 0), (0, 0xFFFF_FFFF), (10, 11), (5, 0xFFFF_FFFF)])
def test_credit_that_cannot_be_is_none(guest: Guest, buf_alloc: int, fwd_cnt: int) -> None:
    client, port = guest.connected(buf_alloc=10)
    client.sendall(bytes(25))
    guest.receive()
    guest.send(Op.CREDIT_UPDATE, port, 5000, buf_alloc=buf_alloc, fwd_cnt=fwd_cnt)
    assert guest.receive() == []


def test_the_guest_is_told_when_the_host_has_taken_its_data(guest: Guest) -> None:
    client, port = guest.connected()
    half = BUFFER_BYTES // 2
    for start in range(0, half, 4096):
        guest.send(Op.RW, port, 5000, bytes(4096))
        assert len(client.recv(4096)) == 4096, start
    updates = guest.receive()
    assert set(ops(updates)) == {Op.CREDIT_UPDATE}
    assert updates[-1].fwd_cnt >= BUFFER_BYTES // 4
    guest.send(Op.CREDIT_REQUEST, port, 5000)
    (update,) = guest.receive()
    assert (update.op, update.fwd_cnt) == (Op.CREDIT_UPDATE, half)


def test_what_the_host_does_not_take_waits_and_all_of_it_arrives_in_order(guest: Guest) -> None:
    client, port = guest.connected()
    sent, passed_on = bytearray(), 0
    while len(sent) < 5 * BUFFER_BYTES:
        while len(sent) - passed_on + 4096 <= BUFFER_BYTES and len(sent) < 5 * BUFFER_BYTES:
            piece = len(sent).to_bytes(4, "little") * 1024
            guest.send(Op.RW, port, 5000, piece)
            sent += piece
        passed_on = max([passed_on, *(packet.fwd_cnt for packet in guest.receive())])
        if len(sent) - passed_on + 4096 > BUFFER_BYTES:
            break
    got = bytearray()
    client.setblocking(False)
    while len(got) < len(sent):
        try:
            got += client.recv(1 << 20)
        except BlockingIOError:
            guest.settle()
    assert got == sent


def test_a_guest_that_sends_beyond_its_credit_loses_the_connection(guest: Guest) -> None:
    client, port = guest.connected()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(4096):
        guest.send(Op.RW, port, 5000, bytes(65536))
        assert sum(len(stream.waiting) for stream in guest.device._by_fd.values()) <= BUFFER_BYTES
        if Op.RST in ops(guest.receive()):
            break
    else:
        pytest.fail("it took everything")


# Ends.


def test_a_client_that_closes_ends_the_connection_after_its_last_byte(guest: Guest) -> None:
    client, _ = guest.connected()
    client.sendall(b"last")
    client.close()
    packets = guest.receive()
    assert ops(packets) == [Op.RW, Op.SHUTDOWN, Op.RST]
    assert (packets[0].data, packets[1].flags & SEND) == (b"last", SEND)
    assert not guest.device._streams


def test_a_client_that_sends_no_more_may_still_receive(guest: Guest) -> None:
    client, port = guest.connected()
    client.shutdown(socket.SHUT_WR)
    assert [(packet.op, packet.flags) for packet in guest.receive()] == [(Op.SHUTDOWN, SEND)]
    guest.send(Op.RW, port, 5000, b"answer")
    assert client.recv(100) == b"answer"


def test_a_guest_that_sends_no_more_may_still_receive(guest: Guest) -> None:
    client, port = guest.connected()
    guest.send(Op.RW, port, 5000, b"last")
    guest.send(Op.SHUTDOWN, port, 5000, flags=SEND)
    assert client.recv(100) == b"last"
    assert client.recv(100) == b""
    client.sendall(b"answer")
    assert [packet.data for packet in guest.receive()] == [b"answer"]


@pytest.mark.parametrize("op", [Op.RST, Op.SHUTDOWN])
def test_what_the_guest_sent_before_it_closed_arrives(guest: Guest, op: int) -> None:
    client, port = guest.connected()
    sent = 0
    while sum(len(stream.waiting) for stream in guest.device._by_fd.values()) < BUFFER_BYTES // 2:
        guest.send(Op.RW, port, 5000, bytes(4096))
        sent += 4096
    guest.send(op, port, 5000, flags=SEND | RECEIVE)
    assert ops([packet for packet in guest.receive() if packet.op != Op.CREDIT_UPDATE]) == [Op.RST] * (op != Op.RST)
    got = 0
    while piece := client.recv(1 << 20):
        got += len(piece)
        guest.settle()
    assert got == sent
    assert not guest.device._by_fd


def test_a_client_that_stops_reading_is_told_to_the_guest(guest: Guest) -> None:
    client, port = guest.connected()
    client.shutdown(socket.SHUT_RD)
    guest.send(Op.RW, port, 5000, b"unheard")
    assert [(packet.op, packet.flags) for packet in guest.receive()] == [(Op.SHUTDOWN, RECEIVE)]


def test_a_reset_of_the_device_ends_all_connections(guest: Guest) -> None:
    client, _ = guest.connected()
    guest.client(b"CONN")
    guest.rig.driver.reset()
    assert client.recv(100) == b""
    assert not guest.device._by_fd
    assert not guest.device._clients
    guest.start()
    guest.connected()


# Another life.


def test_after_a_restore_the_driver_is_told_that_its_connections_are_gone(guest: Guest) -> None:
    client, _ = guest.connected()
    client.send(b"x")
    guest.receive()
    state = guest.device.state()
    client.close()
    guest.start()
    guest.device.restore(state)
    assert guest.device.state() == state, "until it has heard of it"
    guest.settle()
    assert guest.device.state() == state, "until it has heard of it"
    assert guest.take_event() == struct.pack("<I", 0)


def test_a_driver_that_knows_no_connections_is_told_nothing(guest: Guest) -> None:
    guest.device.restore(guest.device.state())
    guest.settle()
    assert guest.take_event() == b""


def test_a_driver_with_another_cid_is_told_to_look_it_up(guest: Guest) -> None:
    guest.device.restore({"cid": CID + 1, "connected": False, "spare": []})
    guest.settle()
    assert guest.take_event() == struct.pack("<I", 0)


@pytest.fixture
def with_spare(guest: Guest) -> tuple[Guest, int]:
    """One that was restored with a connection on which nothing has been sent, and the host's port of that."""
    client, port = guest.connected(buf_alloc=100)
    state = guest.device.state()
    client.close()
    guest.start()
    guest.device.restore(state)
    assert guest.device.state() == state, "for the next snapshot"
    return guest, port


def test_a_fresh_connection_is_for_the_next_client_after_a_restore(with_spare: tuple[Guest, int]) -> None:
    guest, port = with_spare
    client = guest.client(b"CONNECT 5000\nhello")
    assert client.recv(100) == b"OK %d\n" % port
    assert [(packet.op, packet.host_port, packet.data) for packet in guest.receive()] == [(Op.RW, port, b"hello")]
    guest.send(Op.RW, port, 5000, b"world")
    assert client.recv(100) == b"world"
    assert guest.take_event() == b""


def test_a_fresh_connection_is_for_one_client_and_its_own_port(with_spare: tuple[Guest, int]) -> None:
    guest, _ = with_spare
    guest.client(b"CONNECT 5001\n")
    assert [(packet.op, packet.guest_port) for packet in guest.receive()] == [(Op.REQUEST, 5001)]
    first = guest.client(b"CONNECT 5000\n")
    assert first.recv(100).startswith(b"OK ")
    second = guest.client(b"CONNECT 5000\n")
    assert ops(guest.receive()) == [Op.REQUEST]
    second.close()


def test_a_client_that_leaves_a_fresh_connection_ends_it(with_spare: tuple[Guest, int]) -> None:
    guest, port = with_spare
    guest.client(b"CONNECT 5000\n").close()
    assert [(packet.op, packet.host_port) for packet in guest.receive()] == [(Op.SHUTDOWN, port), (Op.RST, port)]


def test_a_client_that_has_left_before_it_gets_a_fresh_connection_ends_it(with_spare: tuple[Guest, int]) -> None:
    guest, port = with_spare
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(guest.path)
        client.sendall(b"CONNECT 5000\n")
    assert [(packet.op, packet.host_port) for packet in guest.receive()] == [(Op.RST, port)]
    assert not guest.device._by_fd


def test_a_fresh_connection_has_the_credit_that_the_guest_told_last(with_spare: tuple[Guest, int]) -> None:
    guest, port = with_spare
    client = guest.client(b"CONNECT 5000\n" + bytes(200))
    assert [len(packet.data) for packet in guest.receive()] == [100]
    guest.send(Op.CREDIT_UPDATE, port, 5000, buf_alloc=100, fwd_cnt=60)
    assert [len(packet.data) for packet in guest.receive()] == [60]
    client.close()


def test_a_guest_may_tell_its_credit_on_a_fresh_connection_that_waits(with_spare: tuple[Guest, int]) -> None:
    guest, port = with_spare
    guest.send(Op.CREDIT_UPDATE, port, 5000, buf_alloc=7)
    guest.client(b"CONNECT 5000\nhello world")
    assert [packet.data for packet in guest.receive()] == [b"hello w"]


@pytest.mark.parametrize("op", [Op.RW, Op.SHUTDOWN, Op.CREDIT_REQUEST, Op.RESPONSE])
def test_a_guest_that_says_more_on_a_fresh_connection_ends_it(with_spare: tuple[Guest, int], op: int) -> None:
    guest, port = with_spare
    guest.send(op, port, 5000)
    assert ops(guest.receive()) == [Op.RST]
    guest.client(b"CONNECT 5000\n")
    assert ops(guest.receive()) == [Op.REQUEST]


def test_a_fresh_connection_ends_with_those_that_were_used(guest: Guest) -> None:
    guest.connected()
    used, _ = guest.connected()
    used.send(b"x")
    guest.receive()
    assert guest.device.state() == {"cid": CID, "connected": True, "spare": []}


def test_a_connection_that_the_guest_has_made_is_not_kept(guest: Guest) -> None:
    with guest.listener(700):
        guest.send(Op.REQUEST, 700, GUEST_PORT)
        assert ops(guest.receive()) == [Op.RESPONSE]
        assert guest.device.state() == {"cid": CID, "connected": True, "spare": []}


def test_connections_wait_until_the_driver_has_read_that(guest: Guest) -> None:
    guest.device.restore({"cid": CID, "connected": True, "spare": []})
    client = guest.client(b"CONNECT 5000\n")
    assert guest.receive() == []
    guest.kick(EVENT)
    assert guest.receive() == [], "a kick without a buffer tells nothing"
    assert guest.take_event()
    guest.offer_event()
    assert ops(guest.receive()) == [Op.REQUEST]
    client.close()


# A hostile guest.


@pytest.mark.parametrize("op", [0, Op.RESPONSE, Op.SHUTDOWN, Op.RW, Op.CREDIT_UPDATE, Op.CREDIT_REQUEST, 8, 0xFFFF])
def test_packets_of_no_connection_are_refused(guest: Guest, op: int) -> None:
    guest.send(op, 1234, 5678)
    assert ops(guest.receive()) == [Op.RST]


def test_a_reset_of_no_connection_is_not_answered(guest: Guest) -> None:
    guest.send(Op.RST, 1234, 5678)
    assert guest.receive() == []


@pytest.mark.parametrize("op", [0, 8, Op.REQUEST, Op.RESPONSE])
def test_an_operation_out_of_place_ends_the_connection(guest: Guest, op: int) -> None:
    client, port = guest.connected()
    guest.send(op, port, 5000)
    assert ops(guest.receive()) == [Op.RST]
    assert client.recv(100) == b""


@pytest.mark.parametrize(("target", "kind"), [(9, 1), (0xFFFF_FFFF_FFFF_FFFF, 1), (2, 2), (2, 0), (9, 0xFFFF)])
def test_another_machine_and_another_type_are_refused_in_their_name(guest: Guest, target: int, kind: int) -> None:
    client, port = guest.connected()
    for op in (Op.REQUEST, Op.RW, Op.SHUTDOWN):
        guest.send(op, port, 5000, target=target, kind=kind)
        (reset,) = guest.receive()
        assert (reset.op, reset.source, reset.kind, reset.host_port, reset.guest_port) == (
            Op.RST, target, kind, port, 5000
        )  # fmt: skip
    guest.send(Op.RST, port, 5000, target=target, kind=kind)
    assert guest.receive() == []
    guest.send(Op.RW, port, 5000, b"still there")
    assert client.recv(100) == b"still there"


@pytest.mark.parametrize("size", [1, 0xFFFF_FFFF])
def test_a_header_that_lies_ends_its_connection(guest: Guest, size: int) -> None:
    client, port = guest.connected()
    guest.send(Op.RW, port, 5000, b"", size=size)
    assert ops(guest.receive()) == [Op.RST]
    assert client.recv(100) == b""


def test_a_packet_in_another_s_name_is_dropped(guest: Guest) -> None:
    _, port = guest.connected()
    guest.send(Op.RST, port, 5000, source=CID + 1)
    assert guest.receive() == []
    assert guest.device._streams
    assert guest.rig.tally.counts["vsock.malformed"] == 1


def test_a_packet_shorter_than_a_header_is_dropped(guest: Guest) -> None:
    guest.send_raw(bytes(HEADER.size - 1))
    assert guest.rig.tally.counts["vsock.malformed"] == 1
    assert not guest.rig.driver.status & Status.DEVICE_NEEDS_RESET


def test_a_buffer_shorter_than_a_header_gets_nothing(make_guest: MakeGuest) -> None:
    guest = make_guest(buffers=0)
    guest.offer(HEADER.size - 1)
    guest.send(Op.REQUEST, 700, GUEST_PORT)
    assert guest.rig.tally.counts["vsock.malformed"] == 1
    guest.offer(HEADER.size)
    assert ops(guest.receive()) == [Op.RST]


def test_refusals_that_nobody_reads_stop_the_sender_and_lose_nothing(make_guest: MakeGuest) -> None:
    guest = make_guest(buffers=0)
    for number in range(4 * RESETS_MAX):
        guest.send(Op.REQUEST, 700, number)
    assert len(guest.device._resets) <= RESETS_MAX
    refused: list[int] = []
    while len(refused) < guest.sent:
        guest.offer(HEADER.size)
        refused += [packet.guest_port for packet in guest.receive(refill=False)]
    assert refused == list(range(guest.sent))


def test_connections_that_the_guest_takes_back_leave_nothing(make_guest: MakeGuest) -> None:
    guest = make_guest(buffers=0)
    with guest.listener(700) as listener:
        for number in range(10):
            guest.send(Op.REQUEST, 700, number)
            guest.send(Op.RST, 700, number)
            listener.accept()[0].close()
        guest.settle()
        assert not guest.device._ready
        assert not guest.device._streams


def test_there_is_a_limit_to_connections(guest: Guest) -> None:
    with guest.listener(700) as listener:
        servers = []
        for number in range(STREAMS_MAX + 3):
            guest.send(Op.REQUEST, 700, number)
            (answer,) = guest.receive()
            assert answer.op == (Op.RESPONSE if number < STREAMS_MAX else Op.RST)
            if answer.op == Op.RESPONSE:
                servers.append(listener.accept()[0])
        late = guest.client(b"CONNECT 5000\n")
        assert guest.receive() == []
        servers.pop().close()
        assert Op.REQUEST in ops(guest.receive())
        late.close()
        for server in servers:
            server.close()


@pytest.mark.parametrize("index", [RX, TX])
def test_a_broken_ring_stops_the_device_until_its_reset(make_guest: MakeGuest, index: int) -> None:
    guest = make_guest(buffers=0)
    client = guest.client(b"CONNECT 5000\n")
    guest.queues[index].set_avail_idx(100)
    guest.kick(index)
    assert guest.rig.driver.status & Status.DEVICE_NEEDS_RESET
    assert client.recv(100) == b""
    guest.start()
    guest.client(b"CONNECT 5000\n")
    guest.offer(HEADER.size)
    assert ops(guest.receive()) == [Op.REQUEST]


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
