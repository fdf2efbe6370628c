"""The switch of a lan does with any frames from any ports what a switch does (IEEE 802.1Q §8.6), and nothing else.

The model is the standard's: a frame is classified into a VLAN, its source learned there, and it goes to the port of its
destination, or to all others that are members of the VLAN.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("vmm.native._engine", reason="the native engine is not built: pip install -e .")

from tests.fakes.lan import BROADCAST, mac, switch, tag
from vmm.config import VLAN_TRUNK

VLANS = (0, 0, 5, 5, VLAN_TRUNK, VLAN_TRUNK)
NATIVE = 1

addresses = st.one_of(st.builds(mac, st.integers(1, 4)), st.just(BROADCAST), st.binary(min_size=6, max_size=6))
one_tag = st.builds(tag, st.sampled_from([0, 1, 5, 6, 4095, 0xE005, 0xE000]))
tags = st.lists(one_tag, max_size=2).map(b"".join)
bodies = st.one_of(st.binary(max_size=20), st.just(bytes(1500)))
frames = st.one_of(st.tuples(addresses, addresses, tags, bodies).map(b"".join), st.binary(max_size=40))
messages = st.tuples(st.integers(0, len(VLANS) - 1), st.binary(min_size=12, max_size=12), frames)


class Model:
    """What each port is to get."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, bytes], int] = {}

    def outcome(self, port: int, sent: bytes) -> list[tuple[int, bytes]]:
        """To which ports which frames go."""
        classified = self._classify(VLANS[port], sent)
        if classified is None or sent[6] & 1:
            return []
        vlan, ends, rest = classified
        self.known[vlan, sent[6:12]] = port
        members = [n for n, of in enumerate(VLANS) if n != port and (of or NATIVE) in (vlan, VLAN_TRUNK)]
        to = None if sent[0] & 1 else self.known.get((vlan, sent[:6]))
        return [(n, self._shape(n, vlan, sent, ends, rest)) for n in members if to in (None, n)]

    def _classify(self, own: int, sent: bytes) -> tuple[int, bytes, bytes] | None:
        """The VLAN of a frame, its addresses, and what is behind them and the tag; None if it may not be sent."""
        default = NATIVE if own in (0, VLAN_TRUNK) else own
        if len(sent) < 14:
            return None
        if sent[12:14] != b"\x81\0":
            return default, sent[:12], sent[12:]
        if len(sent) < 18:
            return None
        chosen = int.from_bytes(sent[14:16], "big") & 0xFFF
        if chosen == 0xFFF or (own != VLAN_TRUNK and (chosen or sent[16:18] == b"\x81\0")):
            return None
        return chosen or default, sent[:12], sent[16:]

    def _shape(self, port: int, vlan: int, sent: bytes, ends: bytes, rest: bytes) -> bytes:
        if VLANS[port] != VLAN_TRUNK or vlan == NATIVE:
            return ends + rest
        was_tagged = len(ends + rest) != len(sent)
        priority = sent[14] & 0xF0 if was_tagged else 0
        return ends + tag(priority << 8 | vlan) + rest


@settings(deadline=None)
@given(st.lists(messages, max_size=30))
def test_any_frames_from_any_ports(sent: list[tuple[int, bytes, bytes]]) -> None:
    with switch() as lan:
        ports = [lan.join(vlan) for vlan in VLANS]
        model = Model()
        for index, header, frame in sent:
            expected: dict[int, list[bytes]] = {}
            for to, shaped in model.outcome(index, frame):
                expected.setdefault(to, []).append(shaped)
            ports[index].send(frame, header=header)
            assert {n: got for n, port in enumerate(ports) if (got := port.got())} == expected


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=60)), max_size=200))
def test_messages_that_are_anything_stop_nobody(sent: list[tuple[int, bytes]]) -> None:
    with switch(addresses=4) as lan:
        ports = [lan.join(vlan) for vlan in (0, 5, VLAN_TRUNK)]
        for index, message in sent:
            ports[index].channel.send(message)
        lan.settle()
        for port in ports:
            assert all(12 + 14 <= len(each) <= 64 and each[:12] == bytes(12) for each in port.received())
