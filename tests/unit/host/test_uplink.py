"""Frames on a stream: a length and a frame, in pieces as they come."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from vmm.errors import BackendError
from vmm.host import uplink as uplink_module
from vmm.host.uplink import StreamUplink

FRAME = bytes(range(60))


class Side:
    """The other side, of the connection that was made last."""

    def __init__(self) -> None:
        self.ends: list[socket.socket] = []

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        return ours

    @property
    def end(self) -> socket.socket:
        return self.ends[-1]


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    yield made
    for end in made.ends:
        end.close()


@pytest.fixture
def uplink(side: Side) -> Iterator[StreamUplink]:
    made = StreamUplink("test", 1500, side.connect)
    yield made
    made.close()


def on_stream(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def read(uplink: StreamUplink, *sizes: int) -> bytes:
    views = [bytearray(size) for size in sizes or (70000,)]
    size = uplink.readv([memoryview(view) for view in views])
    return b"".join(views)[:size]


def test_frames_come_with_an_empty_header(uplink: StreamUplink, side: Side) -> None:
    side.end.sendall(on_stream(FRAME) + on_stream(FRAME[:14]))
    assert read(uplink) == bytes(12) + FRAME
    assert read(uplink, 5, 10, 1000) == bytes(12) + FRAME[:14]
    assert read(uplink) == b""


def test_a_frame_comes_when_all_of_it_is_there(uplink: StreamUplink, side: Side) -> None:
    data = on_stream(FRAME)
    for at in range(len(data)):
        assert read(uplink) == b""
        side.end.sendall(data[at : at + 1])
    assert read(uplink) == bytes(12) + FRAME


def test_what_does_not_fit_is_cut_off(uplink: StreamUplink, side: Side) -> None:
    side.end.sendall(on_stream(FRAME) * 2)
    assert read(uplink, 20) == bytes(12) + FRAME[:8]
    assert read(uplink) == bytes(12) + FRAME


@pytest.mark.parametrize("length", [0, 13, 65554, 0xFFFFFFFF])
def test_a_length_that_is_none(uplink: StreamUplink, side: Side, length: int) -> None:
    side.end.sendall(length.to_bytes(4, "big") + bytes(100))
    with pytest.raises(OSError, match="Protocol error") as caught:
        read(uplink)
    assert caught.value.errno == errno.EPROTO


@pytest.mark.parametrize("last", [b"", b"\0", on_stream(FRAME)[:-1]])
def test_the_end_also_within_a_frame(uplink: StreamUplink, side: Side, last: bytes) -> None:
    side.end.sendall(on_stream(FRAME) + last)
    side.end.close()
    assert read(uplink) == bytes(12) + FRAME
    with pytest.raises(BrokenPipeError):
        read(uplink)


def test_frames_go_without_their_header(uplink: StreamUplink, side: Side) -> None:
    assert uplink.writev([memoryview(b"\xff" * 5), memoryview(b"\xff" * 7 + FRAME[:1]), memoryview(FRAME[1:])])
    assert side.end.recv(100) == on_stream(FRAME)


def test_where_there_is_no_room_a_frame_waits(uplink: StreamUplink, side: Side) -> None:
    whole = memoryview(bytes(12) + FRAME)
    sent = 0
    while uplink.writev([whole]):
        sent += 1
    assert uplink.writev([whole]) is None
    side.end.settimeout(1)
    for _ in range(sent):
        assert side.end.recv(64, socket.MSG_WAITALL) == on_stream(FRAME)
    assert uplink.writev([whole])


def test_a_frame_that_stays_half_sent_is_the_streams_end(
    uplink: StreamUplink, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink_module, "_STALL_MS", 10)
    whole = memoryview(bytes(12 + 65000))
    while (sent := uplink.writev([whole])) is True:
        pass
    if sent is None:
        pytest.skip("this kernel takes all or nothing of 64 KiB")
    assert side.end.recv(4, socket.MSG_PEEK) == (65000).to_bytes(4, "big")
    while side.end.recv(1 << 17):
        pass


def test_what_goes_to_nobody_is_lost(uplink: StreamUplink, side: Side) -> None:
    side.end.close()
    assert uplink.writev([memoryview(bytes(12) + FRAME)]) is False


def test_it_is_mended_under_the_same_descriptor(
    uplink: StreamUplink, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uplink_module, "_LIFE_MIN_S", 0)
    fd = uplink.fileno()
    side.end.close()
    assert uplink.mend(errno.EPIPE) == "test: the other side is lost (Broken pipe); connected again"
    assert uplink.fileno() == fd
    side.end.sendall(on_stream(FRAME))
    assert read(uplink) == bytes(12) + FRAME


def test_what_is_lost_as_soon_as_it_is_there_is_not_mended(uplink: StreamUplink) -> None:
    with pytest.raises(BackendError, match=r"^test: the other side is lost \(Broken pipe\) as soon as it was there"):
        uplink.mend(errno.EPIPE)
