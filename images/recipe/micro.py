"""images/micro: a small kernel that boots fast on every kind of host, its initrd and its root disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import busybox, guest, kernel
from .cache import Artefact
from .debian import Package, check_tools
from .image import APPEND, run_recipe, write_disks

if TYPE_CHECKING:
    from .build import Build
    from .progress import Progress


class Micro:
    """The kernel and the busybox that the image is made from."""

    def prepare(self) -> Artefact:
        check_tools(kernel.TOOLS | busybox.TOOLS | guest.TOOLS)
        self._kernel_source = Package(kernel.SOURCE_PACKAGE)
        self._kernel = kernel.kernel_artefact(self._kernel_source)
        self._busybox = busybox.Busybox()
        inputs = {"kernel": self._kernel.inputs, "busybox": self._busybox.inputs, "files": guest.inputs()}
        return Artefact("micro", inputs)

    def make(self, artefact: Artefact, progress: Progress) -> str:
        def build_image(build: Build) -> dict[str, Any]:
            built = self._kernel.ensure(progress, lambda build: kernel.build_kernel(self._kernel_source, build))
            for name in ("vmlinux", "bzImage", "kernel.config"):
                _link(os.path.join(built, name), os.path.join(build.out, name))
            userland = guest.Userland("micro", self._busybox.ensure(progress), build)
            write_disks(userland, {}, build)
            return {"kernel": ["vmlinux", "bzImage"], "initrd": "initrd.cpio", "root": "root.img", "append": APPEND}

        return artefact.ensure(progress, build_image)


def _link(source: str, target: str) -> None:
    if os.path.exists(target):
        os.unlink(target)
    os.link(source, target)


def main() -> int:
    micro = Micro()
    return run_recipe("micro", "Builds the micro kernel, its initrd and its root disk.", micro.prepare, micro.make)
