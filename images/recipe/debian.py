"""Debian packages by name, and the tools that the recipes need."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from vmm.cache import cache_directory

from .errors import RecipeError

if TYPE_CHECKING:
    from .build import Build


def check_tools(tools: dict[str, str]) -> None:
    """Looks for each tool (a program on PATH, or a file by absolute path); `tools` maps it to its package.

    Raises: RecipeError that gives the command which installs what is missing.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = {
        package: tool
        for tool, package in tools.items()
        if not (os.path.exists(tool) if tool.startswith("/") else shutil.which(tool, path=path))
    }
    if missing:
        raise RecipeError(
            f"missing on this machine: {', '.join(sorted(missing.values()))}\n"
            f"  fix: sudo apt-get install --no-install-recommends {' '.join(sorted(missing))}"
        )


class Package:
    """One Debian package in the version that apt would install."""

    def __init__(self, name: str) -> None:
        """Raises: RecipeError if apt does not know the package."""
        fields = _show(name)
        self.name = name
        self.version = fields["Version"]
        self.size_bytes = int(fields["Size"])
        self.depends = [item.split()[0] for item in fields.get("Depends", "").split(", ") if item]
        self._file = os.path.basename(fields["Filename"])

    def fetch(self, build: Build) -> str:
        """Downloads the package into the cache unless it is there, and returns its path."""
        directory = os.path.join(cache_directory(), "packages")
        path = os.path.join(directory, self._file)
        os.makedirs(directory, exist_ok=True)
        with open(os.path.join(directory, f".lock-{self.name}"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not os.path.exists(path):
                self._download(path, build)
        return path

    def _download(self, path: str, build: Build) -> None:
        partial = f"{path}.d"
        os.makedirs(partial, exist_ok=True)

        def detail(_lines: int) -> str:
            done = sum(entry.stat().st_size for entry in os.scandir(partial))
            return f"{done >> 20}/{self.size_bytes >> 20} MiB"

        with build.progress.stage(f"download {self.name} {self.version}"):
            command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", f"{self.name}={self.version}"]
            build.run(command, cwd=partial, detail=detail)
            (file,) = (entry for entry in os.listdir(partial) if entry.endswith(".deb"))
            os.rename(os.path.join(partial, file), path)
        shutil.rmtree(partial)

    def extract(self, directory: str, build: Build) -> None:
        """Unpacks the package's files, fetched if need be, under `directory`."""
        build.run(["dpkg-deb", "-x", self.fetch(build), directory])


def _show(name: str) -> dict[str, str]:
    """The fields of apt's candidate for `name`."""
    command = ["apt-cache", "show", "--no-all-versions", name]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    if found.returncode or not found.stdout:
        raise RecipeError(
            f"apt does not know the package {name}: the recipes need Debian 12 and its package lists\n"
            f"  fix: sudo apt-get update"
        )
    lines = (line.partition(": ") for line in found.stdout.splitlines() if not line.startswith(" "))
    return {key: value for key, _, value in lines}
