"""DNS (RFC 1035) for the names of a lan's guests, in their VLAN; other questions are other servers' (REFUSED)."""

from __future__ import annotations

import struct

from vmm.host.lan.leases import PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.host.lan.leases import Leases

PORT = 53
#: id, flags, and the numbers of questions, answers, authorities and additional records.
_HEAD = struct.Struct(">HHHHHH")
_QUESTION = struct.Struct(">HH")
#: The name is the question's; type, class, seconds to live, length.
_ANSWER = struct.Struct(">HHHIH")
_NAME_OF_QUESTION = 0xC000 | _HEAD.size
_RESPONSE, _AUTHORITATIVE, _RECURSION_DESIRED, _OPCODE = 0x8000, 0x0400, 0x0100, 0x7800
NO_ERROR, FORMAT_ERROR, NO_SUCH_NAME, NOT_IMPLEMENTED, REFUSED = 0, 1, 3, 4, 5
A, PTR, ANY, INTERNET = 1, 12, 255, 1
_NAME_MAX, _LABEL_MAX = 255, 63
#: What an address is asked by: its numbers from the last to the first, and this.
_REVERSE = "." + ".".join(str(number) for number in reversed(PREFIX)) + ".in-addr.arpa"
#: Guests come and go.
_TTL_S = 10


def answer(leases: Leases, vlan: int, domain: str, query: bytes) -> bytes | None:
    """The answer to *query*; None: it is none."""
    if len(query) < _HEAD.size:
        return None
    number, flags, questions, *_ = _HEAD.unpack_from(query)
    if flags & _RESPONSE:
        return None
    flags = flags & (_OPCODE | _RECURSION_DESIRED) | _RESPONSE
    if flags & _OPCODE:
        return _HEAD.pack(number, flags | NOT_IMPLEMENTED, 0, 0, 0, 0)
    name, end = read_name(query, _HEAD.size)
    if questions != 1 or end < 0 or len(query) < end + _QUESTION.size:
        return _HEAD.pack(number, flags | FORMAT_ERROR, 0, 0, 0, 0)
    kind, network = _QUESTION.unpack_from(query, end)
    code, data = _resolve(leases, vlan, domain.lower(), name) if network == INTERNET else (REFUSED, {})
    found = [(known, data[known]) for known in data if kind in (known, ANY)]
    flags |= code | (0 if code == REFUSED else _AUTHORITATIVE)
    reply = _HEAD.pack(number, flags, 1, len(found), 0, 0) + query[_HEAD.size : end + _QUESTION.size]
    for known, content in found:
        reply += _ANSWER.pack(_NAME_OF_QUESTION, known, INTERNET, _TTL_S, len(content)) + content
    return reply


def _resolve(leases: Leases, vlan: int, domain: str, name: str) -> tuple[int, dict[int, bytes]]:
    """What there is of *name*, by type."""
    if name.endswith(_REVERSE):
        guest = leases.name_at(vlan, _address(name.removesuffix(_REVERSE)))
        return (NO_ERROR, {PTR: write_name(f"{guest}.{domain}")}) if guest else (NO_SUCH_NAME, {})
    guest = name.removesuffix("." + domain)
    if "." in guest or not guest:
        return REFUSED, {}
    address = leases.find(vlan, guest)
    return (NO_ERROR, {A: address}) if address else (NO_SUCH_NAME, {})


def _address(reversed_host: str) -> bytes:
    """The address whose last numbers are *reversed_host*, such as 7.1; nothing if it is none."""
    numbers = [int(part) for part in reversed_host.split(".") if part.isascii() and part.isdigit() and len(part) <= 3]
    return PREFIX + bytes(reversed(numbers)) if len(numbers) == 2 and max(numbers) < 256 else b""


def read_name(message: bytes, at: int) -> tuple[str, int]:
    """The name at *at*, in small letters, and where it ends; -1: it is none. A question has no use for pointers."""
    labels, start = [], at
    while at < len(message) and message[at]:
        size = message[at]
        if size > _LABEL_MAX or at + 1 + size - start > _NAME_MAX:
            return "", -1
        labels.append(message[at + 1 : at + 1 + size])
        at += 1 + size
    if at >= len(message):
        return "", -1
    return b".".join(labels).decode("latin-1").lower(), at + 1


def write_name(name: str) -> bytes:
    """*name* as in a message."""
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
