"""Linux guests that have booted already: a boot takes 12 s and more, to go on from one's snapshot a fifth of a second.

Each is booted once for all tests of a run, in whatever process of pytest-xdist, and not by tests about booting.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count

from tests.fakes.host import PYVMM
from tests.guest.linux import MIB, Image, LinuxGuest, make_disk

#: Of the disks, also of those that are given instead: a snapshot knows the size.
DISK_SIZE = 256 * MIB
#: Takes disks and cards from their drivers, or gives them back: a driver learns then what its device is.
_UNBIND = """\
for driver in /sys/bus/virtio/drivers/virtio_blk /sys/bus/virtio/drivers/virtio_net; do
cd $driver; for device in virtio*; do echo $device > unbind; done; done; cd"""
#: An initrd has the shell alone, which is all programs.
_INSTALL = "/bin/busybox --install -s /bin"
PROBE = "cd /sys/bus/virtio/devices; for device in *; do echo $device > ../drivers_probe; done; cd"
#: What is typed is echoed at 5 ms a character; and what a guest does for the first time takes it three times as long.
_REHEARSE = "stty -echo; for n in 1 2 3; do /bin/busybox true; done"

#: A card, and the way to the agent.
_REST = ("--net", f"lan=boot-{os.getpid()}", "--vsock", "auto")

_lans = count(1)


@dataclass(frozen=True)
class Booted:
    """The snapshot *path* of a guest at its prompt, whose last disk is *disk*."""

    path: str
    disk: str

    def arguments(self, *options: str, disk: str = "", net: str = "") -> tuple[str, ...]:
        """Of pyvmm, for a guest that goes on from it, with *disk* in place of its disks; without *net* it is alone."""
        disks = 2 * ("--disk", f"{disk},readonly") if disk else ()
        return ("restore", self.path, "--net", net or f"lan=alone-{os.getpid()}-{next(_lans)}", *disks, *options)

    def go_on(self, *options: str, disk: str = "", net: str = "", before: tuple[str, ...] = ()) -> LinuxGuest:
        """A guest that goes on from it, at its prompt."""
        guest = LinuxGuest(*self.arguments(*options, disk=disk, net=net), before=before)
        guest.ask_for_prompt()
        return guest

    def copy(self, directory: str) -> Booted:
        """The same for somebody who may read *directory* only."""
        target = os.path.join(directory, os.path.basename(self.path))
        subprocess.run(["cp", "--sparse=always", self.path, target], check=True)
        os.chmod(target, 0o644)
        return Booted(target, self.disk)


def make_data(directory: str) -> str:
    """A disk for a small one, with 20 MiB to send."""
    disk = make_disk(os.path.join(directory, "data.img"), 20 * MIB)
    os.truncate(disk, DISK_SIZE)
    return disk


def boot_small(image: Image, directory: str) -> Booted:
    """A small one in RAM, of which any kind of guest can be made.

    Its two disks and its card have no driver: give others to those who go on (`--disk` of `DISK_SIZE`, `--net`), and
    then `PROBE` is as good as a boot.
    """
    booted = Booted(os.path.join(directory, "small"), os.path.join(directory, "empty.img"))
    with _missing(booted) as missing:
        if missing:
            with open(booted.disk, "wb") as file:
                file.truncate(DISK_SIZE)
            options = ("-k", image.kernel(), "-i", image.initrd, "-m", "128M", "-a", "quiet root=", *_REST)
            _boot(booted, (*options, *(2 * ("-d", f"{booted.disk},readonly"))), _INSTALL, _UNBIND)
    return booted


def boot_large(image: Image, directory: str) -> Booted:
    """A larger one: two CPUs, PCI, its root on a disk, and a disk of 2 MiB; what it writes is its own. No reboots."""
    booted = Booted(os.path.join(directory, "large"), os.path.join(directory, "data.img"))
    with _missing(booted) as missing:
        if missing:
            _boot(booted, large_options(image, make_disk(booted.disk, 2 * MIB)))
    return booted


def large_options(image: Image, disk: str, append: str = "quiet") -> tuple[str, ...]:
    """What makes a large one, with the second disk *disk*."""
    return (
        "-k", image.kernel(), "-m", "256M", "-c", "2", "--transport", "pci", "--no-reboot", "-a", append,
        "-d", f"{image.root},snapshot=on", "-d", f"{disk},snapshot=on", *_REST,
    )  # fmt: skip


@contextmanager
def _missing(booted: Booted) -> Iterator[bool]:
    """Whether it has still to be booted; whoever else asks waits meanwhile."""
    with open(f"{booted.path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not os.path.exists(booted.path)


def _boot(booted: Booted, options: tuple[str, ...], *commands: str) -> None:
    """Boot what *options* say, up to a prompt after *commands*, into the file of *booted*."""
    name = f"boot-{os.path.basename(booted.path)}-{os.getpid()}"
    with closing(LinuxGuest(*options, "--name", name)) as guest:
        guest.wait_for_prompt()
        for command in (*commands, _REHEARSE):
            guest.run(command)
        guest.wait_for_prompt()
        subprocess.run([PYVMM, "snapshot", name, booted.path], check=True, timeout=120)
