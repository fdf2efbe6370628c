"""`bench/testing`: how long pytest takes for tests that have a fresh VM each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time

from bench.command import Bench, say
from bench.errors import BenchError
from bench.report import Row

TESTS, WORKERS = 100, 2
_TIMEOUT_S = 600.0
_TEST = f"""\
import pytest

@pytest.mark.parametrize("number", range({TESTS}))
def test_true(vm, number):
    vm.run(["true"])
"""
_COUNT = re.compile(r"(\d+) (passed|failed|errors?)")

#: How often each row is measured unless `--runs` says otherwise.
RUNS = {"pytest": 10}


def _run(directory: str, *arguments: str) -> tuple[float, dict[str, int]]:
    """How long pytest took, and how many tests have passed, failed and so on."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyvmm-memory=128M", *arguments]
    began = time.monotonic()
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    took = time.monotonic() - began
    counts = {what: int(number) for number, what in _COUNT.findall(done.stdout.splitlines()[-1])}
    if not counts.get("passed"):
        raise BenchError(f"no test has passed:\n{done.stdout}{done.stderr}", fix="pytest -q, with a test of `vm`")
    return took, counts


def _pytest(runs: int) -> list[Row]:
    seconds, failures = [], []
    with tempfile.TemporaryDirectory(prefix="pyvmm-bench-") as directory:
        with open(os.path.join(directory, "test_true.py"), "w", encoding="ascii") as file:
            file.write(_TEST)
        with open(os.path.join(directory, "pytest.ini"), "w", encoding="ascii") as file:
            file.write("[pytest]\npyvmm_require = true\n")
        _run(directory, "-k", "test_true[0]")  # the first boot
        for number in range(runs):
            say(f"pytest: {number} of {runs}")
            took, counts = _run(directory, "-n", str(WORKERS))
            seconds.append(took)
            failures.append(float(TESTS - counts["passed"]))
    clock = f"process start to end of pytest -n {WORKERS}: {TESTS} tests, each `vm.run(['true'])` in a VM of its own"
    return [
        Row(f"pytest -n {WORKERS}, {TESTS} fresh VMs", "s", clock, 25, seconds),
        Row("tests of these that failed", "", "the same runs", 0, failures),
    ]


ROWS = {"pytest": _pytest}


def main() -> int:
    """The whole of `bench/testing`."""
    return Bench("testing", __doc__ or "", ROWS, RUNS).main()
