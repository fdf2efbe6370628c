"""What the probe remembers, and what it does not believe."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from vmm.kvm.assist import probe
from vmm.kvm.assist.probe import HostKind, host_kind

SOFTWARE = HostKind(("int3", "popcnt"), syscall_ok=False)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[HostKind]:
    """The host is SOFTWARE; each time it is tried is recorded."""
    tried: list[HostKind] = []

    def try_host() -> HostKind:
        tried.append(SOFTWARE)
        return SOFTWARE

    monkeypatch.setattr(probe, "_try_host", try_host)
    return tried


def same(left: HostKind, right: HostKind) -> bool:
    return (left.missing, left.syscall_ok) == (right.missing, right.syscall_ok)


@pytest.mark.parametrize(
    ("kind", "complete"),
    [
        (HostKind((), syscall_ok=True), True),
        (HostKind((), syscall_ok=False), False),
        (HostKind(("int3",), syscall_ok=True), False),
    ],
)
def test_complete(kind: HostKind, complete: bool) -> None:
    assert kind.complete is complete


def test_it_is_tried_once(tries: list[HostKind], tmp_path: Path) -> None:
    directory = str(tmp_path / "new" / "pyvmm")
    kinds = [host_kind(directory) for _ in range(3)]
    assert len(tries) == 1
    assert all(same(kind, SOFTWARE) for kind in kinds)
    assert os.listdir(directory) == ["kvm-kind"]


@pytest.mark.parametrize(
    "kind", [HostKind((), syscall_ok=True), HostKind((), syscall_ok=False), HostKind(("int3",), syscall_ok=True)]
)
def test_every_kind_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: HostKind) -> None:
    monkeypatch.setattr(probe, "_try_host", lambda: kind)
    host_kind(str(tmp_path))
    monkeypatch.setattr(probe, "_try_host", lambda: pytest.fail("tried again"))
    assert same(host_kind(str(tmp_path)), kind)


def test_without_a_directory_it_is_tried_each_time(tries: list[HostKind]) -> None:
    host_kind(None)
    host_kind(None)
    assert len(tries) == 2


@pytest.mark.parametrize("what", ["_kvm_modules", "_text"])
def test_another_boot_or_module(
    tries: list[HostKind], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    host_kind(str(tmp_path))
    real_text = probe._text
    if what == "_text":
        monkeypatch.setattr(probe, "_text", lambda path: "another" if "boot_id" in path else real_text(path))
    else:
        monkeypatch.setattr(probe, "_kvm_modules", lambda: ["kvm", "kvm_other"])
    host_kind(str(tmp_path))
    assert len(tries) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"int3", b"int4"),
        lambda content: content.replace(b"no-syscall", b"perhaps"),
        lambda content: content.replace(b"\n", b" "),
        lambda content: content + b"more\n",
        lambda content: b"\xff\0" * 3000,
        lambda content: content.splitlines()[0],
    ],
)
def test_a_damaged_file_is_replaced(tries: list[HostKind], tmp_path: Path, damage: object) -> None:
    host_kind(str(tmp_path))
    file = tmp_path / "kvm-kind"
    good = file.read_bytes()
    assert callable(damage)
    file.write_bytes(damage(good))
    assert same(host_kind(str(tmp_path)), SOFTWARE)
    assert len(tries) == 2
    assert file.read_bytes() == good


def test_a_directory_that_cannot_be(tries: list[HostKind], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert same(host_kind(str(tmp_path / "file" / "pyvmm")), SOFTWARE)
    (tmp_path / "kvm-kind").mkdir()
    assert same(host_kind(str(tmp_path)), SOFTWARE)
    assert sorted(os.listdir(tmp_path)) == ["file", "kvm-kind"]
    assert len(tries) == 2


def test_the_warm_path_is_short(tries: list[HostKind], tmp_path: Path) -> None:
    """It is part of each start: under 0.3 ms, and no module is imported for it."""
    host_kind(str(tmp_path))
    modules = set(sys.modules)
    spent = []
    for _ in range(50):
        started = time.perf_counter()
        host_kind(str(tmp_path))
        spent.append(time.perf_counter() - started)
    assert set(sys.modules) == modules
    assert sorted(spent)[25] < 0.3e-3
