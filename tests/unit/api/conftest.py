"""A VM to be controlled, apart from all others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from tests.fakes.vm import Vm, running


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The directory of all VMs: short enough for sockets, and empty at the end."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-") as directory:
        monkeypatch.setenv("PYVMM_RUN", directory)
        yield directory
        assert os.listdir(directory) == []


@pytest.fixture
def vm(run: str) -> Iterator[Vm]:
    with running("web1") as made:
        yield made
