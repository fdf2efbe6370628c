"""`pyvmm` with a thread beside it that computes without end: what a busy Python program does to its VM."""

from __future__ import annotations

import os
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from vmm.cli.main import main


def _compute() -> None:
    while True:
        sum(range(100))


if __name__ == "__main__":
    threading.Thread(target=_compute, daemon=True).start()
    sys.exit(main())
