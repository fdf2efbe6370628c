"""`pyvmm exec` before there is a guest to talk to. With one: tests/guest/test_agent."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from vmm.agent.client import Agent
from vmm.api import place
from vmm.cli.exec import Errand, main
from vmm.errors import BackendError, ConfigError


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


@pytest.mark.parametrize(
    ("error", "told"), [(BrokenPipeError(), BrokenPipeError), (OSError(errno.ENOSPC, "No space left"), BackendError)]
)
def test_a_stream_of_ours_that_is_gone_ends_the_vm(
    monkeypatch: pytest.MonkeyPatch, error: OSError, told: type[Exception]
) -> None:
    """`pyvmm … --exec yes | head -1`"""
    session = Mock()

    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Agent, "run", run)
    errand = Errand("yes", session)
    errand._run()
    session.stop.assert_called_once_with("by --exec")
    with pytest.raises(told):
        errand.end()


def test_a_variable_has_a_value() -> None:
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        main(["web", "-e", "LANG", "--", "true"], print)
