"""Snapshots that are built once and kept on disk, by what they are made from.

======================  ===============================================================================
in the cache's testing  what it is
======================  ===============================================================================
`HASH/`                 a snapshot that is whole; the hash is of all that `_ingredients` tells
`.work-HASH/`           one being built, or whose builder was killed
`.lock-HASH`            locked by who builds it, or waits for that
======================  ===============================================================================
"""

from __future__ import annotations

import fcntl
import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cache, partial

import vmm
from vmm.cache import cache_directory
from vmm.config import parse_disk
from vmm.errors import ConfigError
from vmm.testing.config import Config
from vmm.testing.snapshot import Snapshot
from vmm.testing.vm import VM

Prepare = Callable[[VM], object]

#: A snapshot that nobody has used for so long is deleted when another one is built.
_UNUSED_S = 14 * 86400
#: What a guest runs before its snapshot, as tests will: what it does for the first time takes it three times as long.
_REHEARSALS: tuple[str | list[str], ...] = ("true", ["true"], "true", ["true"])


class Store:
    """The snapshots in *directory*, else in pyvmm's cache."""

    def __init__(self, directory: str = "", *, boot_timeout: float) -> None:
        self._root = directory or os.path.join(cache_directory(), "testing")
        self._boot_timeout = boot_timeout
        self._failed: dict[str, Exception] = {}

    def snapshot(self, config: Config, prepare: Prepare | None = None) -> Snapshot:
        """A snapshot of *config*, booted and prepared by *prepare*; built if there is none.

        Whoever wants the same meanwhile, in whatever process, waits for it. What could not be built is not tried again.

        Raises:
            ConfigError: there is a disk that is to keep what is written to it.
            VmmError: it cannot be built.
        """
        config = config.resolved().nameless()
        for disk in map(parse_disk, config.disks):
            if disk.overlay and not (disk.readonly or disk.snapshot):
                raise ConfigError(
                    "clones of a snapshot do not write to it",
                    where=f"overlay {disk.path}",
                    fix="overlay=…,snapshot=on; or a VM(disks=[…]) without the fixtures",
                )
        name = _hash(_ingredients(config, prepare))
        directory = os.path.join(self._root, name)
        if name in self._failed:
            raise self._failed[name]
        if not os.path.exists(directory):
            os.makedirs(self._root, 0o700, exist_ok=True)
            with self._locked(name):
                if not os.path.exists(directory):
                    try:
                        self._build(directory, config, prepare)
                    except Exception as error:
                        self._failed[name] = error
                        raise
        os.utime(directory)
        return Snapshot(directory, config)

    def _build(self, directory: str, config: Config, prepare: Prepare | None) -> None:
        self._drop_unused()
        work = os.path.join(self._root, f".work-{os.path.basename(directory)}")
        shutil.rmtree(work, ignore_errors=True)
        os.mkdir(work, 0o700)
        try:
            with VM.of(config.with_lans(f"-build-{os.getpid()}"), boot_timeout=self._boot_timeout) as vm:
                if prepare is not None:
                    prepare(vm)
                for command in _REHEARSALS:
                    vm.run(command)
                vm.rest()
                Snapshot.of(vm, work)
            os.rename(work, directory)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _drop_unused(self) -> None:
        """Nothing happens to VMs that go on from them: their files are open."""
        for entry in os.scandir(self._root):
            with suppress(FileNotFoundError):  # another worker was faster
                if entry.is_dir() and entry.stat().st_mtime < time.time() - _UNUSED_S:
                    shutil.rmtree(entry.path, ignore_errors=True)

    @contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        with open(os.path.join(self._root, f".lock-{name}"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _hash(ingredients: object) -> str:
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()[:16]


def _ingredients(config: Config, prepare: Prepare | None) -> dict[str, object]:
    """What a snapshot depends on: the machine, its files, who prepares it, pyvmm, the host's kernel and processor."""
    return {
        "config": asdict(config),
        "files": [_identity(path) for path in config.files()],
        "prepare": None if prepare is None else _source(prepare),
        "pyvmm": [vmm.__version__, *_modules()],
        "host": [os.uname().release, os.uname().version, _processor()],
    }


def _identity(path: str) -> list[object]:
    found = os.stat(path)
    return [os.path.realpath(path), found.st_size, found.st_mtime_ns]


def _source(prepare: object) -> list[str]:
    """Its name, and all of the file that it is in: what it uses is there too, mostly."""
    if isinstance(prepare, partial):
        return [*_source(prepare.func), repr(prepare.args), repr(sorted(prepare.keywords.items()))]
    function = prepare if inspect.isroutine(prepare) else type(prepare)
    path = inspect.getsourcefile(inspect.unwrap(function))
    with open(path or os.devnull, "rb") as file:
        return [function.__qualname__, hashlib.sha256(file.read()).hexdigest()]


@cache
def _modules() -> list[object]:
    """The program itself, as this process has it: its version is the same from one commit to the next."""
    found: list[object] = []
    for directory, rooms, files in os.walk(os.path.dirname(vmm.__file__)):
        rooms[:] = sorted(set(rooms) - {"testing"})  # what is here makes no difference to a machine
        found += [_identity(os.path.join(directory, file)) for file in files if file.endswith((".py", ".so"))]
    return sorted(found, key=str)


def _processor() -> list[str]:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        first = file.read().split("\n\n")[0]
    return [line for line in first.splitlines() if line.startswith(("vendor_id", "model", "stepping", "flags"))]
