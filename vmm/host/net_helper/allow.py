"""Who may join which network: the allow-list, `/etc/pyvmm/net.toml`.

::

    [[allow]]
    users = ["ann"]
    groups = ["dev"]
    networks = ["lab", "br0"]    # of pyvmm net, and bridges
"""

from __future__ import annotations

import grp
import os
import re
import socket
import stat
import struct
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from vmm.errors import BackendError
from vmm.host.net.link import user_name

ALLOW_LIST = "/etc/pyvmm/net.toml"
_KEYS = ("users", "groups", "networks")
_EXAMPLE = 'such as:\n[[allow]]\ngroups = ["kvm"]\nnetworks = ["lab"]'
_HEADER = re.compile(r"\s*\[\[\s*allow\s*\]\]\s*(#.*)?")
_SO_PEERGROUPS = 59  # asm-generic/socket.h
_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_GROUP = struct.Struct("I")
_GROUPS_MAX = 256  # Python asks for 1024 bytes at most


@dataclass(frozen=True)
class Caller:
    """Who is at the other end of a connection: by the kernel's word, and as it was when they connected."""

    uid: int
    user: str
    groups: frozenset[str]

    @classmethod
    def of(cls, connection: socket.socket) -> Caller:
        """Who connected *connection*, or made the pair of sockets that it is of."""
        uid, gid = peer_ids(connection)
        user = user_name(uid)
        try:
            others = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_MAX * _GROUP.size)
            gids = [group for (group,) in _GROUP.iter_unpack(others)]
        except OSError:  # ERANGE: there are more
            gids = os.getgrouplist(user, gid)
        return cls(uid, user, frozenset(map(_group_name, {gid, *gids})))


@dataclass(frozen=True)
class Rule:
    """One `[[allow]]`. *lines* has the number of the line of each of its keys."""

    users: tuple[str, ...]
    groups: tuple[str, ...]
    networks: tuple[str, ...]
    lines: dict[str, int]

    def matches(self, caller: Caller) -> tuple[int, str] | None:
        """The line by which it speaks of *caller*, and as whom."""
        if caller.user in self.users:
            return self.lines["users"], f"user {caller.user}"
        group = next((name for name in self.groups if name in caller.groups), None)
        return (self.lines["groups"], f"group {group}") if group else None


@dataclass(frozen=True)
class AllowList:
    """The rules in the file *path*."""

    path: str
    rules: tuple[Rule, ...]

    def networks(self, caller: Caller) -> dict[str, str]:
        """The networks that *caller* may join, and the line that says so."""
        found: dict[str, str] = {}
        for rule in self.rules:
            match = rule.matches(caller)
            for network in rule.networks if match else ():
                line, who = match or (0, "")
                found.setdefault(network, f"{self.path}:{line} allows {who} network {network}")
        return found

    def check(self, caller: Caller, network: str) -> str:
        """The line that lets *caller* join *network*.

        Raises:
            BackendError: there is none; what there is for *caller*.
        """
        allowed = self.networks(caller)
        if network in allowed:
            return allowed[network]
        theirs = [(rule.matches(caller), rule.networks) for rule in self.rules]
        lines = [f"line {match[0]} allows {match[1]}: {', '.join(names)}" for match, names in theirs if match]
        raise BackendError(
            f"no line allows user {caller.user} network {network}",
            where=self.path,
            fix="\n".join([*lines, f'root may add: [[allow]] users = ["{caller.user}"] networks = ["{network}"]']),
        )


def peer_ids(connection: socket.socket) -> tuple[int, int]:
    """The user and the group of who connected *connection*."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(credentials)
    return uid, gid


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def read_allow_list(path: str = ALLOW_LIST) -> AllowList:
    """The allow-list in the file *path*, which must be ours (root's), and nobody else's to change.

    Raises:
        BackendError: it is missing, not ours alone, or has a mistake, and in which line.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise BackendError(
                    f"others than {user_name(os.geteuid())} may change it",
                    where=path,
                    fix=f"run: sudo chown root:root {path} && sudo chmod 644 {path}",
                )
            text = file.read().decode()
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise BackendError("there is no such file, so nobody may join a network", where=path, fix=_EXAMPLE) from None
    except OSError as error:
        raise BackendError(f"cannot read: {error.strerror}", where=path) from error
    except ValueError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise BackendError(f"is no TOML: {error}", where=f"{path}:{line[1]}" if line else path) from None
    return AllowList(path, tuple(_rules(path, text.split("\n"), document)))


def _rules(path: str, lines: list[str], document: dict[str, Any]) -> list[Rule]:
    for key in document.keys() - {"allow"}:
        raise BackendError(f"unknown key {key!r}", where=f"{path}:{_line(lines, key, 1)}", fix=_EXAMPLE)
    tables = document.get("allow", [])
    headers = [number for number, line in enumerate(lines, 1) if _HEADER.fullmatch(line)]
    if not isinstance(tables, list) or len(headers) != len(tables):
        raise BackendError("each rule is to be under an [[allow]] of its own", where=path, fix=_EXAMPLE)
    spans = pairwise([*headers, len(lines) + 1])
    return [_rule(path, table, first, lines[: after - 1]) for table, (first, after) in zip(tables, spans, strict=True)]


def _rule(path: str, table: dict[str, Any], header: int, lines: list[str]) -> Rule:
    """The rule *table*, of the last of *lines*, from the *header*-th on."""
    where = {key: _line(lines, key, header) for key in table}
    for key, value in table.items():
        if key not in _KEYS:
            raise BackendError(f"unknown key {key!r}", where=f"{path}:{where[key]}", fix=f"known: {', '.join(_KEYS)}")
        if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
            raise BackendError(f"{key} is to be a list of names", where=f"{path}:{where[key]}", fix=_EXAMPLE)
    if not table.get("networks") or not (table.get("users") or table.get("groups")):
        raise BackendError("needs networks, and users or groups", where=f"{path}:{header}", fix=_EXAMPLE)
    users, groups, networks = (tuple(table.get(key, ())) for key in _KEYS)
    return Rule(users, groups, networks, where)


def _line(lines: list[str], key: str, first: int) -> int:
    """The number of the line that begins with *key*, from the *first* on; else that."""
    pattern = re.compile(rf"""\s*\[*\s*(["']?){re.escape(key)}\1\s*[].=]""")
    return next((number for number, line in enumerate(lines[first - 1 :], first) if pattern.match(line)), first)
