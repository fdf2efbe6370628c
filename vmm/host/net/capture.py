"""Frames of a device as a pcap file, by a packet socket.

pcap file (draft-ietf-opsawg-pcap, pcap-savefile(5); big- or little-endian as the magic says)::

    magic 0xa1b23c4d (ns)  major 2  minor 4  zone 0  sigfigs 0  snaplen  link type 1 (Ethernet)
    then for each frame:  seconds  nanoseconds  bytes captured  bytes on the wire  frame
"""

from __future__ import annotations

import select
import socket
import struct
import time
from typing import TYPE_CHECKING, BinaryIO

from vmm.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

_SNAPLEN = 262144
PCAP_HEADER = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, _SNAPLEN, 1)
_RECORD = struct.Struct("<IIII")
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_PROMISC = 263, 1, 1
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("@ll")
_BUFFER = 4 << 20


class Capture:
    """Everything that passes the device *device*: of a bridge, what passes between its ports too.

    Raises:
        BackendError: there is no such device, or we may not.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        try:
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError as error:
            raise BackendError(
                "cannot capture: this needs CAP_NET_RAW", where=device, fix="run it with sudo"
            ) from error
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.bind((device, _ETH_P_ALL))
            request = struct.pack("@iHH8x", socket.if_nametoindex(device), _PACKET_MR_PROMISC, 0)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, request)
        except OSError as error:
            self._socket.close()
            raise BackendError(f"cannot capture: {error.strerror}", where=device) from error

    def write(self, output: BinaryIO, *, count: int | None, seconds: float | None, stop_fd: int) -> int:
        """Write frames to *output* until there were *count*, *seconds* passed, or *stop_fd* is readable; how many.

        Raises:
            BackendError: the device is gone. What was captured is written.
        """
        output.write(PCAP_HEADER)
        output.flush()
        written = 0
        for frame, stamp in self._frames(seconds, stop_fd):
            output.write(_RECORD.pack(*stamp, len(frame), len(frame)) + frame)
            output.flush()
            written += 1
            if written == count:
                break
        return written

    def close(self) -> None:
        """Capture no more."""
        self._socket.close()

    def _frames(self, seconds: float | None, stop_fd: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
        """Frames, each with the time it passed."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is None or time.monotonic() < deadline:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready = select.select([self._socket.fileno(), stop_fd], [], [], left)[0]
            if stop_fd in ready:
                return
            if not ready:
                continue
            try:
                frame, extra, _, _ = self._socket.recvmsg(_SNAPLEN, socket.CMSG_SPACE(_TIMESPEC.size))
            except OSError as error:
                raise BackendError(f"cannot capture any more: {error.strerror}", where=self._device) from error
            yield frame, _TIMESPEC.unpack(extra[0][2])
