"""The files that pyvmm knows its networks by."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm.errors import BackendError
from vmm.host.net.store import Store


def test_documents(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert store.read("lab", "network.json") is None
    store.write({"a": 1}, "lab", "network.json")
    assert store.read("lab", "network.json") == {"a": 1}
    assert store.networks() == ["lab"]
    store.forget("lab")
    assert store.networks() == os.listdir(tmp_path) == []


def test_where_nothing_was_ever_made(tmp_path: Path) -> None:
    assert Store(str(tmp_path / "nothing")).networks() == []


def test_a_write_that_was_cut_off_changes_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write({"a": 1}, "lab", "network.json")
    (tmp_path / "lab" / ".network.json").write_text('{"a":')
    assert store.read("lab", "network.json") == {"a": 1}
    store.write({"a": 2}, "lab", "network.json")
    assert os.listdir(tmp_path / "lab") == ["network.json"]


def test_what_cannot_be_written_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "lab" / "network.json").mkdir(parents=True)
    with pytest.raises(BackendError, match=r"lab/network\.json: cannot write: Is a directory"):
        Store(str(tmp_path)).write({"a": 1}, "lab", "network.json")


@pytest.mark.root
def test_a_directory_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BackendError, match="file/net: cannot write: Not a directory"),
        Store(str(tmp_path / "file" / "net")).locked(),
    ):
        pass


@pytest.mark.root
def test_all_may_read_it_whatever_the_callers_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        store = Store(str(tmp_path / "state" / "net"))
        with store.locked():
            store.write({"a": 1}, "lab", "network.json")
        assert os.umask(before) == 0o077
    finally:
        os.umask(before)
    made = [tmp_path / "state", *(tmp_path / "state").rglob("*")]
    assert len(made) == 5
    assert all(path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644) for path in made)
