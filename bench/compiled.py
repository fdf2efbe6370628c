"""C and assembly of the benches, compiled when first needed and kept in the cache by the hash of what went in."""

from __future__ import annotations

import hashlib
import os
import subprocess
from typing import TYPE_CHECKING

from bench.errors import BenchError
from vmm.cache import cache_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

_HERE = os.path.dirname(os.path.abspath(__file__))
#: A PVH kernel: one ELF with everything where it is linked, from 1 MiB on.
GUEST_FLAGS = (
    "-m64", "-ffreestanding", "-nostdlib", "-static", "-no-pie",
    "-Wl,--build-id=none", "-Wl,-Ttext-segment=0x100000", "-Wl,-z,noseparate-code", "-Wl,-e,start",
)  # fmt: skip


def compiled(name: str, sources: Sequence[str], flags: Sequence[str], headers: Sequence[str] = ()) -> str:
    """The path of *name*, made by gcc of *sources* (and *headers*, which they include), paths within `bench/`."""
    digest = hashlib.sha256(" ".join(flags).encode())
    for source in (*sources, *headers):
        with open(os.path.join(_HERE, source), "rb") as file:
            digest.update(file.read())
    directory = os.path.join(cache_directory(), "bench")
    path = os.path.join(directory, f"{name}-{digest.hexdigest()[:12]}")
    if not os.path.exists(path):
        os.makedirs(directory, exist_ok=True)
        fresh = f"{path}.{os.getpid()}"
        command = ["gcc", *flags, "-o", fresh, *(os.path.join(_HERE, source) for source in sources)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise BenchError(f"there is no gcc to build {name} with", fix="sudo apt install gcc") from None
        if done.returncode:
            raise BenchError(f"gcc cannot build {name}:\n{done.stderr}")
        os.replace(fresh, path)
    return path
