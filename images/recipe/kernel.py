"""The micro kernel, built from Debian's linux-source package with a config fragment of this repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

from .cache import Artefact
from .errors import RecipeError
from .kconfig import check_config, read_config

if TYPE_CHECKING:
    from .build import Build
    from .debian import Package

FRAGMENT = os.path.join(os.path.dirname(os.path.dirname(__file__)), "micro", "kernel.config")
SOURCE_PACKAGE = "linux-source-6.1"
REVISION = 2  # of the steps in this file: part of the inputs
TOOLS = {
    "bc": "bc",
    "bison": "bison",
    "flex": "flex",
    "gcc": "gcc",
    "lz4": "lz4",
    "make": "make",
    "objcopy": "binutils",
    "tar": "tar",
    "xz": "xz-utils",
    "/usr/include/gelf.h": "libelf-dev",
    "/usr/include/stdio.h": "libc6-dev",
}
# In __init code gcc inlines memset as `rep stosb`, which a host that interprets ring 0 takes byte by byte.
MAKE_VARIABLES = [
    "KCFLAGS=-mstringop-strategy=libcall",
    "KBUILD_BUILD_TIMESTAMP=1970-01-01",
    "KBUILD_BUILD_USER=pyvmm",
    "KBUILD_BUILD_HOST=pyvmm",
]
# The one change to Debian's source. Linux can do with any HZ from 12 on (include/linux/jiffies.h), and offers 24 and 48
# on MIPS, but none below 100 on x86.
HZ_50 = (
    ("\tconfig HZ_100\n", '\tconfig HZ_50\n\t\tbool "50 HZ"\n\n'),
    ("\tdefault 100 if HZ_100\n", "\tdefault 50 if HZ_50\n"),
)
ARCHIVE_CHECKPOINTS = 133  # of 1000 records, in the source archive
MAKE_LINES = 1580  # what make prints for the whole build: for the progress display only


def kernel_artefact(source: Package) -> Artefact:
    """The artefact `micro-kernel`: vmlinux, bzImage and kernel.config."""
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    inputs: dict[str, Any] = {
        "config": read_config(FRAGMENT),
        "packages": {source.name: source.version},
        "compiler": compiler,
        "make": MAKE_VARIABLES,
        "revision": REVISION,
    }
    return Artefact("micro-kernel", inputs)


def build_kernel(source: Package, build: Build) -> dict[str, Any]:
    """Builds the kernel; the source tree and the objects of an interrupted run are used again."""
    tree = os.path.join(build.work, "linux")
    if not os.path.isdir(tree):
        _unpack(source, tree, build)
    _configure(tree, build)
    jobs = f"-j{len(os.sched_getaffinity(0))}"
    with build.progress.stage("build the kernel"):
        build.run(
            ["make", jobs, *MAKE_VARIABLES, "vmlinux", "bzImage"],
            cwd=tree,
            detail=lambda lines: f"{min(lines, MAKE_LINES)}/~{MAKE_LINES} steps",
        )
    # The symbols and the relocations for KASLR go; the notes, with the PVH entry point, stay.
    build.run(["objcopy", "-S", "-R", ".comment", "vmlinux", os.path.join(build.out, "vmlinux")], cwd=tree)
    shutil.copy(os.path.join(tree, "arch/x86/boot/bzImage"), os.path.join(build.out, "bzImage"))
    shutil.copy(os.path.join(tree, ".config"), os.path.join(build.out, "kernel.config"))
    with open(os.path.join(tree, "include/config/kernel.release")) as file:
        return {"kernel_release": file.read().strip()}


def _unpack(source: Package, tree: str, build: Build) -> None:
    package = os.path.join(build.work, "package")
    partial = f"{tree}.partial"
    source.fetch(build)
    with build.progress.stage("unpack the kernel source"):
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        source.extract(package, build)
        archive = os.path.join(package, "usr/src", f"{SOURCE_PACKAGE}.tar.xz")
        unpack = ["tar", "-xJf", archive, "-C", partial, "--strip-components=1", "--exclude=*/drivers/gpu/*.[ch]"]
        build.run(
            [*unpack, "--checkpoint=1000", "--checkpoint-action=echo"],
            detail=lambda lines: f"{min(100, lines * 100 // ARCHIVE_CHECKPOINTS)} %",
        )
        shutil.rmtree(package)
        _offer_50_hz(os.path.join(partial, "kernel/Kconfig.hz"))
        os.rename(partial, tree)


def _offer_50_hz(path: str) -> None:
    with open(path) as file:
        text = file.read()
    for before, added in HZ_50:
        if text.count(before) != 1:
            raise RecipeError(f"{path} has not one line {before.strip()!r}")
        text = text.replace(before, added + before)
    with open(path, "w") as file:
        file.write(text)


def _configure(tree: str, build: Build) -> None:
    with build.progress.stage("configure the kernel"):
        build.run(["make", f"KCONFIG_ALLCONFIG={FRAGMENT}", "allnoconfig"], cwd=tree)
        result = read_config(os.path.join(tree, ".config"))
        check_config(read_config(FRAGMENT), result, os.path.basename(FRAGMENT))
