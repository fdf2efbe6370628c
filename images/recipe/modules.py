"""Kernel modules of a Debian kernel package, in the order in which they have to be loaded."""

from __future__ import annotations

import os
import re

from .errors import RecipeError

# The .modinfo section of a module is a run of NUL-terminated `key=value`.
DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class ModuleDirectory:
    """The modules under one directory, by the name under which the kernel knows them."""

    def __init__(self, directory: str) -> None:
        self._files = {
            name.removesuffix(".ko").replace("-", "_"): os.path.join(parent, name)
            for parent, _, names in os.walk(directory)
            for name in names
            if name.endswith(".ko")
        }

    def with_dependencies(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """File names and contents of the modules `names` and of all they depend on, dependencies first.

        Raises: RecipeError if the package has no such module.
        """
        ordered: dict[str, bytes] = {}
        for name in names:
            self._add(name, ordered)
        return ordered

    def _add(self, name: str, ordered: dict[str, bytes]) -> None:
        file = self._files.get(name)
        if file is None:
            raise RecipeError(f"the kernel package has no module {name}")
        if os.path.basename(file) in ordered:
            return
        with open(file, "rb") as opened:
            data = opened.read()
        found = DEPENDS.search(data)
        for needed in found.group(1).decode().split(",") if found else ():
            if needed:
                self._add(needed.replace("-", "_"), ordered)
        ordered[os.path.basename(file)] = data
