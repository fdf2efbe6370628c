"""The userland of the guests: busybox, and the programs under images/guest/."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .cache import sha256_file
from .tree import Tree

if TYPE_CHECKING:
    from .build import Build

RECIPE = os.path.dirname(__file__)
SOURCES = os.path.join(os.path.dirname(RECIPE), "guest")
AGENT = os.path.join(os.path.dirname(RECIPE), "agent")
TOOLS = {"gcc": "gcc", "/usr/include/stdio.h": "libc6-dev", "mke2fs": "e2fsprogs", "debugfs": "e2fsprogs"}
ROOT_BYTES = 128 << 20

COMMON = ["-std=gnu11", "-Os", "-Wall", "-Wextra", "-Werror", "-static", "-Wl,--build-id=none", "-s"]
BARE = [
    *("-nostdlib", "-ffreestanding", "-fno-pie", "-no-pie", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-Wl,-z,noseparate-code"),
]


def inputs() -> dict[str, str]:
    """The hash of each file that the userland and the images around it are made from."""
    files = [os.path.join(directory, name) for directory in (RECIPE, SOURCES, AGENT) for name in os.listdir(directory)]
    return {
        os.path.basename(path): sha256_file(path) for path in sorted(files) if path.endswith((".py", ".c", ".h", ".sh"))
    }


class Userland:
    """busybox and the compiled programs, ready to be laid out as an initrd or a root disk."""

    def __init__(self, hostname: str, busybox: str, build: Build) -> None:
        """`busybox` is the artefact's directory."""
        self._hostname = hostname
        self._busybox = _read(os.path.join(busybox, "busybox"))
        self._applets = _read(os.path.join(busybox, "applets")).decode().split()
        self._init = _compile(SOURCES, "init", [*COMMON, *BARE], build)
        self._bench = _compile(SOURCES, "bench-syscalls", COMMON, build)
        self._agent = _compile(AGENT, "agent", [*COMMON, *BARE], build)

    def initrd(self, modules: dict[str, bytes]) -> Tree:
        """A root file system in RAM with as few files as will do: busybox's shell finds its applets by itself.

        `modules` are loaded by init in the order given.
        """
        tree = self._common()
        tree.file("init", self._init, 0o755)
        tree.character_device("dev/console", 5, 1)
        tree.character_device("dev/null", 1, 3, 0o666)
        tree.character_device("dev/ttyS0", 4, 64)
        for name, data in modules.items():
            tree.file(f"lib/modules/{name}", data)
        if modules:
            tree.file("etc/modules", "".join(f"/lib/modules/{name}\n" for name in modules).encode())
        return tree

    def root(self) -> Tree:
        """The root disk: every applet by its usual path."""
        tree = self._common()
        tree.file("sbin/init", self._init, 0o755)
        tree.file("bin/bench-syscalls", self._bench, 0o755)
        for applet in self._applets:
            if applet not in tree:
                tree.symlink(applet, "/bin/busybox")
        return tree

    def _common(self) -> Tree:
        tree = Tree()
        for directory in ("dev", "mnt", "proc", "run", "sys"):
            tree.directory(directory)
        tree.directory("root", 0o700)
        tree.directory("tmp", 0o1777)
        tree.file("bin/busybox", self._busybox, 0o755)
        tree.symlink("bin/sh", "busybox")
        tree.file("sbin/pyvmm-agent", self._agent, 0o755)
        for name in ("halt", "poweroff", "reboot"):
            tree.symlink(f"sbin/{name}", "/bin/busybox")
        tree.file("etc/hostname", f"{self._hostname}\n".encode())
        tree.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        tree.file("etc/group", b"root:x:0:\n")
        tree.file("etc/udhcpc/default.script", _read(os.path.join(SOURCES, "udhcpc.sh")), 0o755)
        return tree


def _compile(sources: str, name: str, flags: list[str], build: Build) -> bytes:
    program = os.path.join(build.work, name)
    source = os.path.join(sources, f"{name}.c")
    build.run(["gcc", *flags, "-o", program, source])
    return _read(program)


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
