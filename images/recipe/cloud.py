"""images/debian: Debian's stock kernel for virtual machines, unmodified, with an initrd and a root disk."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from . import busybox, guest
from .cache import Artefact
from .debian import Package, check_tools
from .errors import RecipeError
from .image import APPEND, run_recipe, write_disks
from .modules import ModuleDirectory

if TYPE_CHECKING:
    from .build import Build
    from .progress import Progress

KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = (
    *("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng", "pvpanic_mmio"),
    "vmw_vsock_virtio_transport",
)


class Cloud:
    """The kernel package and the busybox that the image is made from."""

    def prepare(self) -> Artefact:
        check_tools(busybox.TOOLS | guest.TOOLS)
        self._kernel = _real_kernel(Package(KERNEL_PACKAGE))
        self._busybox = busybox.Busybox()
        inputs: dict[str, Any] = {"packages": {self._kernel.name: self._kernel.version}, "modules": MODULES}
        return Artefact("debian", inputs | {"busybox": self._busybox.inputs, "files": guest.inputs()})

    def make(self, artefact: Artefact, progress: Progress) -> str:
        def build_image(build: Build) -> dict[str, Any]:
            unpacked = os.path.join(build.work, "kernel")
            release = self._kernel.name.removeprefix("linux-image-")
            self._kernel.fetch(build)
            with progress.stage("unpack the kernel"):
                shutil.rmtree(unpacked, ignore_errors=True)
                self._kernel.extract(unpacked, build)
            shutil.copy(os.path.join(unpacked, "boot", f"vmlinuz-{release}"), os.path.join(build.out, "vmlinuz"))
            shutil.copy(os.path.join(unpacked, "boot", f"config-{release}"), os.path.join(build.out, "kernel.config"))
            modules = ModuleDirectory(os.path.join(unpacked, "lib/modules", release)).with_dependencies(MODULES)
            userland = guest.Userland("debian", self._busybox.ensure(progress), build)
            write_disks(userland, modules, build)
            return {
                "kernel": ["vmlinuz"],
                "kernel_release": release,
                "initrd": "initrd.cpio",
                "root": "root.img",
                "append": APPEND,
            }

        return artefact.ensure(progress, build_image)


def _real_kernel(meta: Package) -> Package:
    """The package with the kernel itself, which the meta package depends on."""
    for name in meta.depends:
        if name.startswith("linux-image-"):
            return Package(name)
    raise RecipeError(f"{meta.name} {meta.version} depends on no kernel image")


def main() -> int:
    cloud = Cloud()
    return run_recipe(
        "debian", "Fetches Debian's cloud kernel; makes its initrd and root disk.", cloud.prepare, cloud.make
    )
