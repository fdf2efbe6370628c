"""The data plane in C: rings, and the blk and net workers, which never take the GIL. `build.py` makes it `_engine`."""

from __future__ import annotations


def is_built() -> bool:
    """Whether there is an `_engine` to import."""
    try:
        import vmm.native._engine  # noqa: F401
    except ImportError:
        return False
    return True
