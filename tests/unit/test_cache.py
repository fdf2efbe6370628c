"""Where pyvmm keeps what it can make again."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmm.cache import cache_directory


@pytest.fixture(autouse=True)
def nothing_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment says nothing of caches."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for name in ("PYVMM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_it_is_in_the_user_s_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_directory() == "/home/me/.cache/pyvmm"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/xdg")
    assert cache_directory() == "/var/tmp/xdg/pyvmm"


def test_pyvmm_cache_is_itself_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_CACHE", "mine")
    assert cache_directory() == str(tmp_path / "mine")
