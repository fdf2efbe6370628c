"""Who connects to the helper."""

from __future__ import annotations

import socket
import time

import pytest

from vmm.host.net_helper import service
from vmm.host.net_helper.allow import Caller


def test_who_says_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_REQUEST_S", 0.1)
    said: list[str] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        start = time.monotonic()
        service.serve(theirs, Caller.of(theirs), "/nowhere", said.append)
        assert 0.1 <= time.monotonic() - start < 5
        assert ours.recv(1) == b""
    assert said == []
