"""Kernel modules of a Debian kernel package, in the order in which they have to be loaded."""

from __future__ import annotations

import os
import re
import struct

from .errors import RecipeError

# The .modinfo section of a module is a run of NUL-terminated `key=value`.
DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
# What CONFIG_MODULE_SIG appends: the signature, struct module_signature (which ends with its size), and this mark.
SIGNATURE_MARK = b"~Module signature appended~\n"
SIGNATURE_INFO = struct.Struct(">8xI")


def unsigned(module: bytes) -> bytes:
    """*module* without its signature: checking one takes the kernel ten seconds where ring 0 is interpreted."""
    if not module.endswith(SIGNATURE_MARK):
        return module
    info_end = len(module) - len(SIGNATURE_MARK)
    (size,) = SIGNATURE_INFO.unpack_from(module, info_end - SIGNATURE_INFO.size)
    return module[: info_end - SIGNATURE_INFO.size - size]


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
        """File names and (unsigned) contents of the modules `names` and of all they depend on, dependencies first.

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
        ordered[os.path.basename(file)] = unsigned(data)
