"""Debian packages by name, and the tools that the recipes need."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmm.cache import cache_directory

from .errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .build import Build

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


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
        source = fields.get("Source", name).split()  # with its version in brackets, where that is another one
        self.source = SourcePackage(source[0], source[1].strip("()") if source[1:] else self.version)
        self._file = os.path.basename(fields["Filename"])

    def fetch(self, build: Build) -> str:
        """Downloads the package into the cache unless it is there, and returns its path."""
        return _cached(self.name, self._file, lambda partial: self._download(partial, build))

    def _download(self, partial: str, build: Build) -> str:
        def detail(_lines: int) -> str:
            done = sum(entry.stat().st_size for entry in os.scandir(partial))
            return f"{done >> 20}/{self.size_bytes >> 20} MiB"

        with build.progress.stage(f"download {self.name} {self.version}"):
            command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", f"{self.name}={self.version}"]
            build.run(command, cwd=partial, detail=detail)
        (file,) = (entry for entry in os.listdir(partial) if entry.endswith(".deb"))
        return os.path.join(partial, file)

    def extract(self, directory: str, build: Build) -> None:
        """Unpacks the package's files, fetched if need be, under `directory`."""
        build.run(["dpkg-deb", "-x", self.fetch(build), directory])


@dataclass(frozen=True)
class SourcePackage:
    """What a package is built from: the archive as upstream made it, and Debian's changes."""

    name: str
    version: str

    def fetch(self, build: Build) -> str:
        """Downloads the source package into the cache unless it is there, and returns the directory with its files."""
        directory = f"{self.name}_{self.version.rpartition(':')[2]}"
        return _cached(f"{self.name}-source", directory, lambda partial: self._download(partial, build))

    def _download(self, partial: str, build: Build) -> str:
        """With a list of sources of its own: the machine's need not have them, and may be another user's."""
        with build.progress.stage(f"download the source of {self.name} {self.version}"):
            apt_get = ["apt-get", "-c", _source_apt(os.path.join(build.work, "apt"))]
            build.run([*apt_get, "update", "--error-on=any"])
            build.run([*apt_get, "source", "--download-only", f"{self.name}={self.version}"], cwd=partial)
        return partial

    def extract(self, directory: str, build: Build) -> None:
        """Unpacks the source, fetched if need be, into `directory`, which is new, with Debian's patches applied."""
        files = self.fetch(build)
        os.makedirs(directory)
        for part, strip in ((".orig.tar.", 1), (".debian.tar.", 0)):
            (archive,) = (file for file in os.listdir(files) if part in file)
            build.run(["tar", "-xf", os.path.join(files, archive), "-C", directory, f"--strip-components={strip}"])
        patches = os.path.join(directory, "debian", "patches")
        with open(os.path.join(patches, "series")) as series:
            for line in series:
                if line.strip() and not line.startswith("#"):
                    build.run(["patch", "-p1", "-i", os.path.join(patches, line.strip())], cwd=directory)


def _cached(name: str, entry: str, download: Callable[[str], str]) -> str:
    """The path of `entry` among the packages of the cache.

    If it is not there, `download` gets a directory to work in, where an interrupted run's files still are, and returns
    the path of what becomes the entry.
    """
    directory = os.path.join(cache_directory(), "packages")
    path = os.path.join(directory, entry)
    partial = f"{path}.d"
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, f".lock-{name}"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            os.makedirs(partial, exist_ok=True)
            os.rename(download(partial), path)
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _source_apt(directory: str) -> str:
    """Writes a configuration for apt-get with `directory` for all its files; its path.

    It knows the sources of Debian's archive, from where the machine has its packages.
    """
    os.makedirs(os.path.join(directory, "lists", "partial"), exist_ok=True)
    sources = os.path.join(directory, "sources.list")
    with open(sources, "w") as file:
        options = f"[signed-by={KEYRING} target=Sources]"
        file.writelines(f"deb-src {options} {uri} {suite} main\n" for uri, suite in _debian_archives())
    path = os.path.join(directory, "apt.conf")
    with open(path, "w") as file:
        file.write(
            "#clear APT::Update;\n"  # what is to run after an update of the machine's lists
            f'Dir::Etc::SourceList "{sources}";\n'
            'Dir::Etc::SourceParts "/dev/null";\n'
            f'Dir::State::Lists "{directory}/lists";\n'
            f'Dir::Cache "{directory}";\n'
            'APT::Sandbox::User "root";\n'
            'Acquire::Check-Valid-Until "false";\n'  # as the version is given, old lists cannot give an older one
        )
    return path


def _debian_archives() -> list[tuple[str, str]]:
    """URI and suite of each source of Debian's packages that apt is configured with."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"]
    command += ["Identifier: Packages", "Origin: Debian", "Component: main"]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    targets = dict.fromkeys(line.rpartition(" ")[::2] for line in listing.splitlines())
    archives = [target for target in targets if not target[0].startswith("cdrom:")]
    if not archives:
        raise RecipeError(
            "apt has no packages from Debian's archive (Origin: Debian), so that it cannot have sources from there\n"
            "  fix: an entry for Debian 12 in /etc/apt/sources.list, and sudo apt-get update"
        )
    return archives


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
