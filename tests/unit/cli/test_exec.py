"""`pyvmm exec` before there is a guest to talk to. With one: tests/guest/test_agent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmm.api import place
from vmm.cli.exec import main
from vmm.errors import ConfigError


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))


def test_a_vm_that_does_not_run_is_told() -> None:
    with pytest.raises(ConfigError, match=r"VM web: no such VM is running(.|\n)*pyvmm ps"):
        main(["web", "--", "true"], print)


def test_a_vm_without_vsock_is_told_the_option() -> None:
    claimed = place.claim("web")
    with pytest.raises(ConfigError, match="--vsock auto"):
        main(["web", "--", "true"], print)
    claimed.release()


def test_a_command_must_be_given() -> None:
    with pytest.raises(ConfigError, match="takes NAME COMMAND"):
        main(["web"], print)


def test_a_variable_has_a_value() -> None:
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        main(["web", "-e", "LANG", "--", "true"], print)
