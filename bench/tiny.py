"""Builds the tiny guest, `guest/tiny.S`, into the cache."""

from __future__ import annotations

import hashlib
import os
import subprocess

from bench.errors import BenchError
from images.recipe.cache import cache_directory

_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "guest", "tiny.S")
_FLAGS = (
    "-m64", "-ffreestanding", "-nostdlib", "-static", "-no-pie",
    "-Wl,--build-id=none", "-Wl,-Ttext-segment=0x100000", "-Wl,-z,noseparate-code", "-Wl,-e,start",
)  # fmt: skip


def build(work: str = "") -> str:
    """The path of the guest that idles at once, or does *work* first: `READS=n` or `LOOPS=n` (see its source)."""
    flags = [*_FLAGS, *([f"-D{work}"] if work else [])]
    with open(_SOURCE, "rb") as file:
        digest = hashlib.sha256(file.read() + " ".join(flags).encode()).hexdigest()[:12]
    directory = os.path.join(cache_directory(), "bench")
    path = os.path.join(directory, f"tiny-{digest}.elf")
    if not os.path.exists(path):
        os.makedirs(directory, exist_ok=True)
        fresh = f"{path}.{os.getpid()}"
        try:
            done = subprocess.run(["gcc", *flags, "-o", fresh, _SOURCE], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise BenchError("there is no gcc to build the tiny guest with", fix="sudo apt install gcc") from None
        if done.returncode:
            raise BenchError(f"gcc cannot build the tiny guest:\n{done.stderr}")
        os.replace(fresh, path)
    return path
