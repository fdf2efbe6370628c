"""Which engine serves the devices."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.native import missing
from vmm.config import DiskConfig, MachineConfig
from vmm.errors import HostError
from vmm.kvm.assist.probe import HostKind
from vmm.session import Session

built = pytest.mark.skipif(bool(missing), reason=missing)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def native(tmp_path: Path, said: list[str]) -> Any:
    (tmp_path / "disk.img").write_bytes(bytes(512))

    def is_native(**options: Any) -> bool:
        disks = (DiskConfig(path=str(tmp_path / "disk.img")),)
        config = MachineConfig(kernel="k", serial="null", disks=disks, **options)
        host = HostKind((), syscall_ok=True)
        session = Session(config, host, say=said.append, trace=lambda _: None, cache_dir=None)
        session.close()
        return session.native

    return is_native


@pytest.fixture
def not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vmm.native._engine", None)


@built
def test_the_native_engine_if_it_is_built(native: Any, said: list[str]) -> None:
    assert native()
    assert native(engine="native")
    assert not native(engine="python")
    assert said == []


def test_python_if_it_is_not(native: Any, said: list[str], not_built: None) -> None:
    assert not native()
    assert said == ["the native engine is not built: the python engine serves the disks and network cards"]


def test_an_engine_that_is_not_there(native: Any, not_built: None) -> None:
    with pytest.raises(HostError, match="--engine native: it is not built\n  install a C compiler"):
        native(engine="native")


@built
def test_requests_are_traced_by_python(native: Any, said: list[str]) -> None:
    assert not native(trace=frozenset({"virtio"}))
    assert len(said) == 1
    assert native(trace=frozenset({"virtio"}), engine="native")
