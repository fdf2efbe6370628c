"""`bench/net`: networks of guests, beside what the kernel has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import lan_rows, managed_rows
from bench.command import Bench

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Row

ROWS: dict[str, Callable[[int], list[Row]]] = {
    "create": managed_rows.create,
    "attach": managed_rows.attach,
    "lan": lan_rows.frames,
}
#: How often each row is measured unless `--runs` says otherwise.
RUNS = dict.fromkeys(ROWS, 5) | {"create": 20}


def main() -> int:
    """The whole of `bench/net`."""
    return Bench("net", __doc__ or "", ROWS, RUNS).main()
