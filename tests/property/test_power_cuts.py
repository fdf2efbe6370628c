"""What the guest was told is flushed survives a power failure, whenever that comes.

VIRTIO 1.2 §5.2.6.2: "If the device is backed by persistent storage, the device MUST ensure that stable writes are
committed to it, before reporting completion of the write […] or the flush".
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import cuts
from tests.fakes.native import missing

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler: package gcc")

#: The native engine without io_uring, whose system calls cannot be got between; all before and after them is the same.
ENGINES = ["python", pytest.param("threads", marks=pytest.mark.skipif(bool(missing), reason=missing))]


@pytest.fixture(scope="module")
def dropping(tmp_path_factory: pytest.TempPathFactory) -> str:
    source = os.path.join(os.path.dirname(cuts.__file__), "dropping.c")
    library = tmp_path_factory.mktemp("dropping") / "dropping.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", source, "-o", str(library)], check=True)
    return str(library)


def run(library: str, image: Path, engine: str, cache: str, count: int) -> list[str]:
    preload = f"{os.environ.get('LD_PRELOAD', '')} {library}"  # behind a sanitizer, which wants to be first
    environment = {**os.environ, "LD_PRELOAD": preload, "DROPPING": str(image), "DROPPING_EARLY": "1"}
    arguments = [sys.executable, "-m", "tests.fakes.cuts", str(image), engine, cache, "1", str(count)]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


#: An overlay shows neither a hole in the place of its base's data, nor old data for its own.
IMAGES = ["disk.img", "disk.cow"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("image", IMAGES)
def test_nothing_flushed_is_lost(dropping: str, tmp_path: Path, engine: str, image: str) -> None:
    assert run(dropping, tmp_path / image, engine, "writeback", 200) == ["kept"] * 200


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("image", IMAGES)
def test_without_flushes_it_would_be(dropping: str, tmp_path: Path, engine: str, image: str) -> None:
    """The disk does drop what it may."""
    assert "lost" in run(dropping, tmp_path / image, engine, "unsafe", 3)
