"""What a VM and the helper say to each other; the helper believes none of it."""

from __future__ import annotations

import json
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.config import NetConfig
from vmm.errors import BackendError, ConfigError
from vmm.host.net_helper.wire import (
    REQUEST_MAX,
    parse_request,
    raise_refusal,
    receive_answer,
    refusal,
    request,
    send_answer,
)


@pytest.mark.parametrize(
    "net",
    [
        NetConfig(network="lab"),
        NetConfig(network="lab", name="web1", private=True, queues=4, mtu=1280),
        NetConfig(bridge="br0"),
        None,
    ],
)
def test_a_request_arrives_as_it_was(net: NetConfig | None) -> None:
    assert parse_request(request(net)) == net


def test_what_concerns_the_card_alone_is_not_asked_for() -> None:
    assert parse_request(request(NetConfig(network="lab", mac=b"\x52\x54\0\0\0\1"))) == NetConfig(network="lab")


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"network": 1}, "no 'network' like that"),
        ({"queues": "2"}, "no 'queues' like that"),
        ({"queues": True, "network": "lab"}, "no 'queues' like that"),
        ({"mtu": None, "network": "lab"}, "no 'mtu' like that"),
        ({"network": ["lab"]}, "no 'network' like that"),
        ({"tap": "tap0"}, "no 'tap' like that"),
        ({"pcap": "/etc/passwd", "lan": "a"}, "no 'pcap' like that"),
        ({"network": "a-name-of-sixteen"}, "is no name"),
        ({"network": "lab\n"}, "is no name"),
        ({"network": "\ud800"}, "is no name"),
        ({"network": "lab", "queues": 17}, "queues=17 is not within"),
        ({"network": "lab", "mtu": 10**200}, "is not within"),
        ({"network": "lab", "bridge": "br0"}, "needs one of"),
        ({"name": "web1"}, "needs one of"),
        ({"bridge": "br0", "private": True}, "private=yes is for networks"),
    ],
)
def test_a_request_that_cannot_be(fields: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        parse_request(json.dumps({"version": 1, **fields}).encode())


@pytest.mark.parametrize("version", [{}, {"version": 2}, {"version": "1"}])
def test_another_version(version: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="different versions"):
        parse_request(json.dumps({**version, "network": "lab"}).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"1", b"null", b"\xff\xfe", b"[" * REQUEST_MAX, b'{"version": NaN}']
)
def test_no_request_at_all(data: bytes) -> None:
    with pytest.raises(ConfigError):
        parse_request(data)


def test_a_request_that_is_too_long() -> None:
    with pytest.raises(ConfigError, match="at most 1024 bytes"):
        parse_request(request(NetConfig(network="lab")) + b" " * REQUEST_MAX)


@given(st.binary(max_size=REQUEST_MAX) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    try:
        parse_request(data)
    except ConfigError:
        return


NAMES = st.sampled_from(["version", "network", "name", "private", "bridge", "mtu", "queues", "tap", ""])
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from(["", "lab", "../lab", "/"]),
    st.lists(st.none()),
)


@given(st.dictionaries(NAMES, VALUES))
def test_any_object_is_a_request_or_refused(fields: dict[str, object]) -> None:
    try:
        parse_request(json.dumps({"version": 1, **fields}).encode())
    except ConfigError:
        return


@pytest.mark.parametrize("kind", [ConfigError, BackendError])
def test_an_error_arrives_as_it_was(kind: type[ConfigError | BackendError]) -> None:
    error = kind("what", where="where", fix="fix")
    with pytest.raises(kind) as caught:
        raise_refusal(refusal(error))
    assert vars(caught.value) == vars(error)


def test_descriptors_go_with_an_answer() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, open(os.devnull) as null:
        send_answer(ours, {"tap": "pyvmm0"}, [null.fileno()])
        got = receive_answer(theirs, 1)
        assert got is not None
        answer, fds = got
        assert answer == {"tap": "pyvmm0"}
        assert os.readlink(f"/proc/self/fd/{fds[0]}") == os.devnull
        assert not os.get_inheritable(fds[0])
        os.close(fds[0])


def test_no_answer() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        ours.close()
        assert receive_answer(theirs, 1) is None
