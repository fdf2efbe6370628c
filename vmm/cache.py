"""Where pyvmm keeps what it can make again. All of it may be deleted at any time."""

from __future__ import annotations

import os


def cache_directory() -> str:
    """`$PYVMM_CACHE`, or `pyvmm` in the user's cache directory; as an absolute path, which need not exist."""
    own = os.environ.get("PYVMM_CACHE")
    if own:
        return os.path.abspath(own)
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pyvmm")
