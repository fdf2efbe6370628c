"""Overlays as their users meet them: made, written by a guest, looked at, written back, thrown away."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli.conftest import Pyvmm
from tests.cli.test_disk_full import SECTOR, SIZE, WORD, writer
from tests.fakes.native import both_engines

WRITTEN = WORD.to_bytes(4, "little") * 128


@pytest.fixture
def base(pyvmm: Pyvmm) -> str:
    path = pyvmm.file("base.img", b"")
    os.truncate(path, SIZE)
    return path


def sector(path: str) -> bytes:
    with open(path, "rb") as file:
        file.seek(SECTOR * 512)
        return file.read(512)


@pytest.mark.kvm
@both_engines
def test_from_create_to_commit(pyvmm: Pyvmm, base: str, engine: str) -> None:
    pyvmm.may_stay("work.cow")
    assert pyvmm("disk", "create", "work.cow", "--base", base).messages == ""
    for _ in range(2):
        assert pyvmm(*pyvmm.guest(writer()), "--disk", "overlay=work.cow", "--engine", engine).code == 0
    assert sector(base) == bytes(512)
    facts = json.loads(pyvmm("disk", "info", "work.cow", "--format", "json").output)
    assert (facts["version"], facts["own_bytes"], facts["problem"]) == (1, 4096, "")
    done = pyvmm("disk", "commit", "work.cow")
    assert (done.code, done.messages) == (0, "pyvmm: work.cow: 0.0 MiB written to its base; the overlay is empty now\n")
    assert sector(base) == WRITTEN
    assert "usable     yes\n" in pyvmm("disk", "info", "work.cow").output


@pytest.mark.kvm
@both_engines
def test_what_is_thrown_away(pyvmm: Pyvmm, base: str, engine: str) -> None:
    run = pyvmm(*pyvmm.guest(writer()), "--disk", f"{base},snapshot=on", "--engine", engine)
    assert (run.code, run.messages) == (0, "")
    assert sector(base) == bytes(512)


@pytest.mark.kvm
def test_a_changed_base_is_refused_before_anything_runs(pyvmm: Pyvmm, base: str) -> None:
    pyvmm.may_stay("work.cow")
    pyvmm("disk", "create", "work.cow", "--base", base)
    os.utime(base)
    run = pyvmm(*pyvmm.guest(writer()), "--disk", "overlay=work.cow")
    assert run.code == 2
    assert run.messages.startswith(f"pyvmm: work.cow: its base {base} has changed since the overlay was made over it")
    assert "usable     no: its base" in pyvmm("disk", "info", "work.cow").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "a.cow"], "pyvmm: pyvmm disk create a.cow: over which image?"),
        (["create", "--base", "base.img"], "pyvmm: pyvmm disk create: takes OVERLAY"),
        (["create", "a.cow", "--base", "none.img"], "pyvmm: none.img: there is no such file"),
        (["create", "base.img", "--base", "base.img"], "pyvmm: base.img: is there already"),
        (["info", "base.img"], "pyvmm: base.img: is no overlay"),
        (["info", "none.cow"], "pyvmm: none.cow: there is no such file"),
        (["info", "base.img", "--format", "xml"], "pyvmm: --format: 'xml' is no format"),
        (["commit", "base.img"], "pyvmm: base.img: is no overlay"),
        (["rebase", "base.img"], "pyvmm: pyvmm disk rebase: there is no such verb"),
    ],
)
def test_what_is_wrong(pyvmm: Pyvmm, base: str, arguments: list[str], message: str) -> None:
    run = pyvmm("disk", *arguments)
    assert run.code == 2
    assert run.messages.startswith(message)


def test_help(pyvmm: Pyvmm) -> None:
    assert "pyvmm disk VERB OVERLAY" in pyvmm("disk").output
    assert "--base IMAGE" in pyvmm("disk", "create", "--help").output
