"""Builds that tell nobody how they come on."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from images.recipe.build import Build
from images.recipe.progress import Progress


@pytest.fixture
def progress() -> Progress:
    return Progress("test", io.StringIO())


@pytest.fixture
def build(tmp_path: Path, progress: Progress) -> Build:
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    out.mkdir()
    return Build(str(work), str(out), progress)
