"""`pyvmm-net-helper --print-units`: what sets the helper up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.errors import BackendError
from vmm.host.net_helper import units


def test_the_script_is_for_the_program_that_printed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "_refuse_others_files", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["/opt/my vmm/pyvmm-net-helper"])
    script = units.setup_script()
    assert "\nExecStart='/opt/my vmm/pyvmm-net-helper'\n" in script
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)


@pytest.mark.root
def test_a_program_that_others_may_change_is_not_run_as_root(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "helper"
    program.parent.mkdir()
    program.touch()
    os.chown(program.parent, 65534, -1)
    with pytest.raises(BackendError, match=f"others than root may change {program.parent}"):
        units._refuse_others_files(str(program))
