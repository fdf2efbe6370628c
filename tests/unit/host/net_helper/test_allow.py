"""The allow-list: who may join which network, and the line that says so."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vmm.errors import BackendError
from vmm.host.net.link import user_name
from vmm.host.net_helper.allow import AllowList, Caller, read_allow_list

ANN = Caller(1000, "ann", frozenset({"ann", "dev"}))
BOB = Caller(1001, "bob", frozenset({"bob"}))

RULES = """\
# Who may join what.
[[allow]]
users = ["ann"]
networks = ["lab"]

[[allow]]  # two lines for a list
groups = [
    "ops", "dev",
]
networks = ["lab", "br0"]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.toml"


def rules(path: Path, text: str) -> AllowList:
    path.write_text(text)
    path.chmod(0o644)
    return read_allow_list(str(path))


def test_a_user_by_name(path: Path) -> None:
    assert rules(path, RULES).check(ANN, "lab") == f"{path}:3 allows user ann network lab"


def test_a_user_by_a_group(path: Path) -> None:
    assert rules(path, RULES).check(ANN, "br0") == f"{path}:7 allows group dev network br0"


def test_all_that_a_user_may_join(path: Path) -> None:
    allowed = rules(path, RULES)
    assert list(allowed.networks(ANN)) == ["lab", "br0"]
    assert allowed.networks(BOB) == {}


def test_what_no_line_allows(path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        rules(path, RULES).check(ANN, "prod")
    assert str(caught.value).splitlines() == [
        f"{path}: no line allows user ann network prod",
        "  line 3 allows user ann: lab",
        "  line 7 allows group dev: lab, br0",
        '  root may add: [[allow]] users = ["ann"] networks = ["prod"]',
    ]


def test_somebody_without_a_line(path: Path) -> None:
    with pytest.raises(BackendError, match="no line allows user bob network lab") as caught:
        rules(path, RULES).check(BOB, "lab")
    assert caught.value.fix.startswith("root may add")


def test_an_empty_list_allows_nothing(path: Path) -> None:
    assert rules(path, "").networks(ANN) == {}


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("[[allow]]\nusers == 1\n", ":2", "is no TOML"),
        ("users = [", "", "is no TOML"),
        ("\xff", "", "is no TOML"),
        ("[allow]\nusers = ['ann']\nnetworks = ['lab']\n", "", "[[allow]] of its own"),
        ("allow = [{users = ['ann'], networks = ['lab']}]\n", "", "[[allow]] of its own"),
        ("\nallows = 1\n", ":2", "unknown key 'allows'"),
        ("[[alow]]\nusers = ['ann']\n", ":1", "unknown key 'alow'"),
        ("[[allow]]\nusers = ['ann']\nnetworks = ['lab']\n\n[[allow]]\nuser = ['ann']\n", ":6", "unknown key 'user'"),
        ("[[allow]]\nusers = 'ann'\nnetworks = ['lab']\n", ":2", "users is to be a list of names"),
        ("[[allow]]\nusers = ['ann']\nnetworks = [1]\n", ":3", "networks is to be a list of names"),
        ("[[allow]]\nusers.ann = ['lab']\n", ":2", "users is to be a list of names"),
        ("\n[[allow]]\nnetworks = ['lab']\n", ":2", "needs networks, and users or groups"),
        ("\n[[allow]]\nusers = ['ann']\n", ":2", "needs networks, and users or groups"),
        ("[[allow]]\nusers = []\nnetworks = ['lab']\n", ":1", "needs networks, and users or groups"),
    ],
)
def test_a_mistake_is_told_with_its_line(path: Path, text: str, line: str, what: str) -> None:
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o644)
    with pytest.raises(BackendError) as caught:
        read_allow_list(str(path))
    assert caught.value.where == f"{path}{line}"
    assert what in caught.value.what


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_change_allows_nobody(path: Path, mode: int) -> None:
    path.write_text(RULES)
    path.chmod(mode)
    with pytest.raises(BackendError, match=f"others than {user_name(os.geteuid())} may change it"):
        read_allow_list(str(path))


@pytest.mark.root
def test_a_file_of_another_user_allows_nobody(path: Path) -> None:
    path.write_text(RULES)
    os.chown(path, 65534, 0)
    with pytest.raises(BackendError, match="others than root may change it"):
        read_allow_list(str(path))


def test_no_file(path: Path) -> None:
    with pytest.raises(BackendError, match="there is no such file, so nobody may join a network"):
        read_allow_list(str(path))


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot read: Is a directory"):
        read_allow_list(str(tmp_path))


def test_who_is_calling() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        caller = Caller.of(ours)
    assert (caller.uid, caller.user) == (os.geteuid(), user_name(os.geteuid()))
    assert len(caller.groups) == len({os.getegid(), *os.getgroups()})
