"""The image cache: a directory per artefact, named by the hash of what it is made from.

- `images/NAME-<hash12>/`: finished; made whole by one rename, never changed afterwards
- `images/NAME`: symlink to the newest
- `images/.work-NAME-<hash12>/`: being built; kept after an interruption, so that the next run goes on from there
- `images/.lock-NAME`: flock, one build of an artefact at a time
- `packages/`: Debian packages as downloaded
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vmm.cache import cache_directory

from .build import Build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .progress import Progress

MANIFEST = "manifest.json"


def sha256_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Artefact:
    """A directory of the cache: `name`, and `inputs` (JSON values) that say exactly what it is made from."""

    def __init__(self, name: str, inputs: dict[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]
        self.name = name
        self.inputs = inputs
        self._root = os.path.join(cache_directory(), "images")
        self.directory = os.path.join(self._root, f"{name}-{digest}")
        self._work = os.path.join(self._root, f".work-{name}-{digest}")

    @property
    def built(self) -> bool:
        return os.path.exists(os.path.join(self.directory, MANIFEST))

    def ensure(self, progress: Progress, make: Callable[[Build], dict[str, Any]]) -> str:
        """Builds the artefact unless it is there, and returns its directory.

        `make` puts the finished files in `build.out` and returns what the manifest is to say about them; what an
        interrupted run left in `build.work` is still there in the next one.
        """
        os.makedirs(self._root, exist_ok=True)
        if not self.built:
            with self._locked(progress):
                if not self.built:
                    self._build(Build(self._work, os.path.join(self._work, "out"), progress), make)
        self._point_to_newest()
        return self.directory

    def _build(self, build: Build, make: Callable[[Build], dict[str, Any]]) -> None:
        self._drop_other_work()
        out = build.out
        os.makedirs(out, exist_ok=True)
        facts = make(build)
        files = {name: sha256_file(os.path.join(out, name)) for name in sorted(os.listdir(out)) if name != MANIFEST}
        with open(os.path.join(out, MANIFEST), "w") as file:
            json.dump({"name": self.name, **facts, "sha256": files, "inputs": self.inputs}, file, indent=2)
            file.write("\n")
        for name in files:
            os.chmod(os.path.join(out, name), 0o444)
        os.sync()
        os.rename(out, self.directory)
        shutil.rmtree(self._work)

    def _point_to_newest(self) -> None:
        link, target = os.path.join(self._root, self.name), os.path.basename(self.directory)
        if not os.path.islink(link) or os.readlink(link) != target:
            fresh = f"{link}.{os.getpid()}"
            os.symlink(target, fresh)
            os.replace(fresh, link)

    def _drop_other_work(self) -> None:
        """Removes what builds from other inputs left unfinished; the lock says that none of them is running."""
        for entry in os.listdir(self._root):
            stem, _, digest = entry.rpartition("-")
            path = os.path.join(self._root, entry)
            if stem == f".work-{self.name}" and digest and path != self._work:
                shutil.rmtree(path)

    @contextmanager
    def _locked(self, progress: Progress) -> Iterator[None]:
        with open(os.path.join(self._root, f".lock-{self.name}"), "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress.note("another run is building this; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            os.set_inheritable(lock.fileno(), True)
            yield
