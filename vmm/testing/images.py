"""Guest images by name: directories that `images/NAME/build` makes, of the form that images/README.md tells."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from vmm.cache import cache_directory
from vmm.errors import ConfigError

DEFAULT = "micro"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Image:
    """A kernel, what it needs to find its root disk, and that disk, as paths; an empty one is not there."""

    kernel: str
    initrd: str
    root: str
    append: str


class NoImage(ConfigError):
    """There is no image of that name."""


def find(name: str) -> Image:
    """The image *name* in `$PYVMM_IMAGES` or pyvmm's cache, or in the directory *name* if there is a slash in it.

    Raises:
        NoImage: it is in none of them.
        ConfigError: it is no image.
    """
    places = [name] if "/" in name else [os.path.join(place, name) for place in _places()]
    for place in places:
        directory = os.path.realpath(place)
        if os.path.exists(os.path.join(directory, _MANIFEST)):
            return _read(directory)
    fix = f"in a source tree of pyvmm: images/{name}/build\nor $PYVMM_IMAGES: a directory that has it"
    raise NoImage(f"there is no {' nor '.join(places)}", where=f"image {name}", fix="" if "/" in name else fix)


def _places() -> list[str]:
    own = os.environ.get("PYVMM_IMAGES")
    return [*([own] if own else []), os.path.join(cache_directory(), "images")]


def _read(directory: str) -> Image:
    try:
        with open(os.path.join(directory, _MANIFEST), encoding="utf-8") as file:
            manifest = json.load(file)
        return Image(
            kernel=os.path.join(directory, manifest["kernel"][0]),
            # Where the kernel has modules, the initrd has those that the root disk needs; else it only costs time.
            initrd=os.path.join(directory, manifest["initrd"]) if "kernel_release" in manifest else "",
            root=os.path.join(directory, manifest["root"]) if manifest.get("root") else "",
            append=manifest.get("append", ""),
        )
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"{_MANIFEST} is none of an image: {error}", where=directory) from error
