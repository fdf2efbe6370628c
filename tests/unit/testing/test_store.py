"""Snapshots are built once for each distinct configuration, whoever asks, and kept."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.unit.testing.fakes import FakeVM, touch
from vmm.testing import StartFailed, store
from vmm.testing.config import Config
from vmm.testing.store import Store


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "VM", FakeVM)
    monkeypatch.setattr(FakeVM, "made", [])
    monkeypatch.setattr(FakeVM, "fails", None)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "vmlinux").write_bytes(b"kernel")
    return Config(kernel=str(tmp_path / "vmlinux"))


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def test_the_second_time_it_is_there(config: Config, root: str) -> None:
    first = Store(root, boot_timeout=1).snapshot(config)
    second = Store(root, boot_timeout=1).snapshot(config)
    assert first.path == second.path
    assert os.path.exists(first.path)
    assert len(FakeVM.made) == 1
    assert FakeVM.made[0].closed


def test_many_at_once_build_it_once(config: Config, root: str) -> None:
    paths: list[str] = []
    threads = [
        threading.Thread(target=lambda: paths.append(Store(root, boot_timeout=1).snapshot(config).path))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8
    assert len(set(paths)) == len(FakeVM.made) == 1


def test_another_configuration_kernel_or_host_is_another_snapshot(
    config: Config, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Store(root, boot_timeout=1)
    paths = [found.snapshot(config).path, found.snapshot(replace(config, cpus=2)).path]
    touch(config.kernel, 60)
    paths.append(found.snapshot(config).path)
    monkeypatch.setattr(store, "_processor", lambda: ["another"])
    paths.append(found.snapshot(config).path)
    assert len(set(paths)) == 4


def test_it_is_prepared_and_has_run_commands_and_rested_before_it_is_kept(config: Config, root: str) -> None:
    def prepare(vm: FakeVM) -> None:
        vm.run("install")

    prepared = Store(root, boot_timeout=1).snapshot(config, prepare)  # type: ignore[arg-type]
    assert FakeVM.made[0].commands == ["install", "true", ["true"], "true", ["true"], "(rest)"]
    assert prepared.path != Store(root, boot_timeout=1).snapshot(config).path


class _Preparation:
    def __call__(self, vm: FakeVM) -> None:
        vm.run("install")


def _install(package: str, vm: FakeVM) -> None:
    vm.run(f"install {package}")


@pytest.mark.parametrize(
    ("prepare", "another"),
    [(_Preparation(), partial(_install, "a")), (partial(_install, "a"), partial(_install, "b"))],
)
def test_whatever_can_be_called_may_prepare_it(config: Config, root: str, prepare: Any, another: Any) -> None:
    found = Store(root, boot_timeout=1)
    paths = [found.snapshot(config, how).path for how in (prepare, another, prepare)]
    assert paths[0] == paths[2] != paths[1]


def test_what_cannot_be_built_is_tried_once(config: Config, root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVM, "fails", StartFailed("no agent"))
    found = Store(root, boot_timeout=1)
    for _ in range(2):
        with pytest.raises(StartFailed):
            found.snapshot(config)
    assert len(FakeVM.made) == 1
    assert not [name for name in os.listdir(root) if not name.startswith(".lock")]


def test_one_that_nobody_has_used_for_long_goes_when_another_comes(config: Config, root: str) -> None:
    found = Store(root, boot_timeout=1)
    old = found.snapshot(config)
    touch(old.directory, 15 * 86400)
    found.snapshot(replace(config, cpus=2))
    assert not os.path.exists(old.directory)
