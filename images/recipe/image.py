"""What the two images have in common: initrd, root disk, and the command line of a recipe."""

from __future__ import annotations

import argparse
import os
import signal
from typing import TYPE_CHECKING

from .cpio import write_cpio
from .errors import RecipeError
from .ext4 import write_ext4
from .guest import ROOT_BYTES
from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from .build import Build
    from .cache import Artefact
    from .guest import Userland

APPEND = "console=ttyS0 root=/dev/vda rw quiet"


def write_disks(userland: Userland, modules: dict[str, bytes], build: Build) -> None:
    """Writes initrd.cpio and root.img."""
    with build.progress.stage("write initrd.cpio and root.img"):
        with open(os.path.join(build.out, "initrd.cpio"), "wb") as file:
            write_cpio(userland.initrd(modules), file)
        write_ext4(userland.root(), os.path.join(build.out, "root.img"), ROOT_BYTES, build)


def run_recipe(
    name: str, describe: str, prepare: Callable[[], Artefact], make: Callable[[Artefact, Progress], str]
) -> int:
    """The whole of `images/NAME/build`: prints the image's directory as the last line of stdout; the exit code."""
    parser = argparse.ArgumentParser(prog=f"images/{name}/build", description=describe)
    parser.add_argument("--print", action="store_true", help="print the directory if it is built; build nothing")
    only_print = parser.parse_args().print
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    progress = Progress(f"images/{name}")
    try:
        artefact = prepare()
        if only_print and not artefact.built:
            progress.note(f"not built yet: run images/{name}/build")
            return 1
        print(artefact.directory if only_print else make(artefact, progress))
    except RecipeError as error:
        progress.note(str(error))
        return 1
    except KeyboardInterrupt:
        progress.note("interrupted; the next run goes on from here")
        return 128 + signal.SIGINT
    return 0
