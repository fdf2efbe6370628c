"""The guests' busybox: Debian's source and configuration but for a config fragment of this repository, with musl.

Every command of a guest is a start of it. Where the host interprets ring 0, a start with musl (a dozen pages, 3 system
calls before main) takes half the time of one with glibc (40 and 13), which Debian's busybox-static is linked with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from .cache import Artefact, sha256_file
from .debian import Package
from .kconfig import check_config, read_config

if TYPE_CHECKING:
    from .build import Build
    from .progress import Progress

GUEST = os.path.join(os.path.dirname(os.path.dirname(__file__)), "guest")
FRAGMENT = os.path.join(GUEST, "busybox.config")
PACKAGE = "busybox"
DEBIAN_CONFIG = "debian/config/pkg/static"
LIBC = "/usr/lib/x86_64-linux-musl/libc.a"
REVISION = 1  # of the steps in this file: part of the inputs
TOOLS = {
    "bzip2": "bzip2",
    "gcc": "gcc",
    "make": "make",
    "musl-gcc": "musl-tools",
    "patch": "patch",
    "tar": "tar",
    "xz": "xz-utils",
    LIBC: "musl-dev",
    "/usr/include/linux/types.h": "linux-libc-dev",
}
MAKE_LINES = 630  # what make prints for the whole build: for the progress display only


class Busybox:
    """The artefact `busybox`: the program, `applets` (the path of each, a line) and busybox.config."""

    def __init__(self) -> None:
        self._source = Package(PACKAGE).source
        version = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout
        self.inputs: dict[str, Any] = {
            "config": read_config(FRAGMENT),
            "source": {self._source.name: self._source.version},
            "compiler": version.splitlines()[0],
            "libc": sha256_file(LIBC),
            "revision": REVISION,
        }

    def ensure(self, progress: Progress) -> str:
        """Builds it unless it is there, and returns its directory; an interrupted build goes on."""
        return Artefact("busybox", self.inputs).ensure(progress, self._build)

    def _build(self, build: Build) -> dict[str, Any]:
        tree = os.path.join(build.work, "busybox")
        if not os.path.isdir(tree):
            self._unpack(tree, build)
        variables = ["CC=musl-gcc", "KCONFIG_NOTIMESTAMP=1", f"BB_EXTRA_VERSION=Debian {self._source.version}, musl"]
        make = ["make", f"-j{len(os.sched_getaffinity(0))}", *variables]
        with build.progress.stage("configure busybox"):
            configure(tree, make, build)
        with build.progress.stage("build busybox"):
            build.run(
                [*make, "busybox"], cwd=tree, detail=lambda lines: f"{min(lines, MAKE_LINES)}/~{MAKE_LINES} steps"
            )
        program = os.path.join(tree, "busybox")
        shutil.copy(program, build.out)
        shutil.copy(os.path.join(tree, ".config"), os.path.join(build.out, "busybox.config"))
        with open(os.path.join(build.out, "applets"), "w") as file:
            subprocess.run([program, "--list-full"], stdout=file, check=True)
        return {"version": self._source.version}

    def _unpack(self, tree: str, build: Build) -> None:
        partial = f"{tree}.partial"
        self._source.fetch(build)
        with build.progress.stage("unpack the source of busybox"):
            shutil.rmtree(partial, ignore_errors=True)
            self._source.extract(partial, build)
            os.rename(partial, tree)


def configure(tree: str, make: list[str], build: Build) -> None:
    """Configures the source in `tree` as Debian does, but for what the fragment says."""
    wanted = read_config(os.path.join(tree, DEBIAN_CONFIG)) | read_config(FRAGMENT)
    config = os.path.join(tree, ".config")
    with open(config, "w") as file:
        file.writelines(
            f"# {name} is not set\n" if value == "n" else f"{name}={value}\n" for name, value in wanted.items()
        )
    build.run([*make, "oldconfig"], cwd=tree)
    check_config(wanted, read_config(config), os.path.basename(FRAGMENT))
