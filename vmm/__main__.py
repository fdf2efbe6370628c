"""`python -m vmm` and the `pyvmm` command."""

from __future__ import annotations

import sys

from vmm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
