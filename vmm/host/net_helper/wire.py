"""What a VM and the helper say to each other: a message each way, over a Unix socket of packets.

=========  =========================================================================================
request    a JSON object: `version`, and the fields of a `NetConfig` that say where its tap is to be;
           without them it asks which networks its user may join
answer     ``{"tap": NAME, "mtu": BYTES, "mac": ADDRESS or null}`` with a descriptor for each queue;
           ``{"networks": {NAME: the line that allows it}}``;
           or ``{"error": "config" or "host", "what": …, "where": …, "fix": …}``
=========  =========================================================================================

The tap lasts until either side ends the connection.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

from vmm.config import NetConfig
from vmm.errors import BackendError, ConfigError, HostError

VERSION = 1
REQUEST_MAX, ANSWER_MAX = 1024, 65536
_FIELDS = {"network": str, "name": str, "private": bool, "bridge": str, "mtu": int, "queues": int}
_FD = struct.Struct("i")
_TEXT_MAX = 15  # of a name; IFNAMSIZ without the terminator
_OTHER_VERSION = "the helper and this pyvmm are of different versions"


def request(net: NetConfig | None) -> bytes:
    """The request for the tap of *net*; None: for the networks there are."""
    fields = {name: getattr(net, name) for name in _FIELDS} if net else {}
    given = {name: value for name, value in fields.items() if value != getattr(NetConfig, name)}
    return json.dumps({"version": VERSION, **given}).encode()


def parse_request(data: bytes) -> NetConfig | None:
    """What `request` made *data* of. It is not to be trusted.

    Raises:
        ConfigError: it is no request, or cannot be.
    """
    if len(data) > REQUEST_MAX:
        raise ConfigError(f"a request has at most {REQUEST_MAX} bytes")
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise ConfigError("a request is a JSON object") from None
    if not isinstance(fields, dict):
        raise ConfigError("a request is a JSON object")
    if fields.pop("version", None) != VERSION:
        raise ConfigError(_OTHER_VERSION)
    for name, value in fields.items():
        if name not in _FIELDS or type(value) is not _FIELDS[name]:
            raise ConfigError(f"a request has no {name!r} like that")
        if isinstance(value, str) and not (len(value) <= _TEXT_MAX and value.isprintable()):
            raise ConfigError(f"{value!r} is no name")
    return NetConfig(**fields) if fields else None


def refusal(error: ConfigError | HostError) -> dict[str, Any]:
    """The answer that is *error*, which `raise_refusal` raises at the other end."""
    kind = "config" if isinstance(error, ConfigError) else "host"
    return {"error": kind, "what": error.what, "where": error.where, "fix": error.fix}


def raise_refusal(answer: dict[str, Any]) -> None:
    """Raise the error that *answer* is, if it is one."""
    if "error" in answer:
        kind = ConfigError if answer["error"] == "config" else BackendError
        raise kind(answer["what"], where=answer["where"], fix=answer["fix"])


def send_answer(connection: socket.socket, answer: dict[str, Any], fds: list[int] | None = None) -> None:
    """Send *answer*, and *fds* with it."""
    socket.send_fds(connection, [json.dumps({"version": VERSION, **answer}).encode()], fds or [])


def receive_answer(connection: socket.socket, fds_max: int) -> tuple[dict[str, Any], list[int]] | None:
    """The answer, and what descriptors came with it; None: the helper ended without one.

    Raises:
        BackendError: the helper is of another version.
        OSError: the connection broke, or nothing came in time.
    """
    space = socket.CMSG_LEN(fds_max * _FD.size)
    data, ancillary, _, _ = connection.recvmsg(ANSWER_MAX, space, socket.MSG_CMSG_CLOEXEC)
    fds = [fd for _, _, content in ancillary for (fd,) in _FD.iter_unpack(content)]
    if not data:
        return None
    answer = json.loads(data)
    if answer.pop("version") != VERSION:
        for fd in fds:
            os.close(fd)
        raise BackendError(_OTHER_VERSION, where="pyvmm-net-helper")
    return answer, fds
