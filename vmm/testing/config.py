"""What a VM under test is to be, as the command line of pyvmm."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

from vmm.cache import cache_directory
from vmm.config import parse_disk, parse_net, parse_size
from vmm.errors import ConfigError
from vmm.testing import images

_SIZE = re.compile(r"[0-9]+[KMGT]")


@dataclass(frozen=True)
class Config:
    """A machine, as its user says it; `vmm.testing.VM` tells what the fields mean."""

    kernel: str = ""
    image: str = ""
    initrd: str = ""
    append: str = ""
    disks: tuple[str, ...] = ()
    nets: tuple[str, ...] = ()
    cpus: int = 1
    memory: str = "256M"
    transport: str = "mmio"
    options: tuple[str, ...] = ()

    def resolved(self) -> Config:
        """With absolute paths, the files of the image in the place of its name, and disks whose changes are lost.

        Raises:
            ConfigError: there is no such image, or a disk or network cannot be.
        """
        if self.kernel and self.image:
            raise ConfigError("is given beside an image, which has one", where=f"kernel {self.kernel}")
        kernel, initrd, append, disks = self.kernel, self.initrd, self.append, self.disks
        if not kernel:
            image = images.find(self.image or images.DEFAULT)
            kernel, initrd = image.kernel, initrd or image.initrd
            disks = ((_escaped(image.root),) if image.root else ()) + disks
            append = f"{image.append} {append}".strip()
        for net in self.nets:
            parse_net(net)
        return replace(
            self,
            image="",
            kernel=os.path.abspath(kernel),
            initrd=initrd and os.path.abspath(initrd),
            append=append,
            disks=tuple(map(_found, disks)),
        )

    def nameless(self) -> Config:
        """Without the guest's names on its networks: whoever it will be, it boots the same."""
        return replace(self, nets=tuple(re.sub(r",name=[^,]+", "", net) for net in self.nets))

    def with_lans(self, suffix: str) -> Config:
        """With its lans renamed by *suffix*, so that they are a test's own."""
        return replace(self, nets=tuple(re.sub(r"^lan=([^,]+)", rf"lan=\1{suffix}", net) for net in self.nets))

    def arguments(self) -> list[str]:
        """Of `pyvmm run`."""
        given = [
            *("--kernel", self.kernel, "--append", self.append),
            *(("--initrd", self.initrd) if self.initrd else ()),
            *("--cpus", str(self.cpus), "--memory", self.memory, "--transport", self.transport),
        ]
        for option, values in (("--disk", self.disks), ("--net", self.nets)):
            for value in values:
                given += [option, value]
        return [*given, *self.options]

    def files(self) -> list[str]:
        """What a guest of this configuration depends on."""
        parsed = [parse_disk(disk) for disk in self.disks]
        paths = [self.kernel, self.initrd, *(disk.path for disk in parsed), *(disk.base for disk in parsed)]
        return [path for path in paths if path]


def _found(disk: str) -> str:
    """*disk* with an absolute path; of a size, the empty image that it means."""
    if _SIZE.fullmatch(disk):
        return f"{_escaped(_empty(parse_size(disk)))},snapshot=on"
    parsed = parse_disk(disk)
    path = os.path.abspath(parsed.path)
    if not parsed.overlay and not os.path.exists(path):
        raise ConfigError("there is no such image", where=f"disk {disk}", fix="a size such as 64M makes an empty disk")
    _, comma, options = disk.replace(",,", "\0").partition(",")
    lost = "" if parsed.readonly or parsed.overlay or parsed.snapshot else ",snapshot=on"
    return f"{'overlay=' if parsed.overlay else ''}{_escaped(path)}{lost}{comma}{options.replace(chr(0), ',,')}"


def _escaped(path: str) -> str:
    """*path* as `--disk` takes it."""
    return path.replace(",", ",,")


def _empty(size: int) -> str:
    """An empty image of *size* bytes, which all that want one share."""
    path = os.path.join(cache_directory(), "testing", f"empty-{size}.img")
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        new = f"{path}.{os.getpid()}"
        with open(new, "wb") as file:
            file.truncate(size)
        try:
            os.link(new, path)  # whoever is first: its time is what overlays remember
        except FileExistsError:
            pass
        finally:
            os.unlink(new)
    return path
