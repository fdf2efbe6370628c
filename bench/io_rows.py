"""`bench/io`: disks, network cards, exits and idle VMs, with guests that drive the devices themselves, beside QEMU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import data_rows, exit_rows, linux_rows
from bench.command import Bench

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.report import Row

ROWS: dict[str, Callable[[int], list[Row]]] = {
    "randread": data_rows.random_read,
    "seqread": data_rows.sequential_read,
    "randwrite": data_rows.random_write,
    "flush": data_rows.write_flush,
    "tx": data_rows.send,
    "rx": data_rows.receive,
    "tso": data_rows.send_tso,
    "pio": exit_rows.pio,
    "mmio": exit_rows.mmio,
    "start": exit_rows.start,
    "idle": exit_rows.idle_memory,
    "wakeups": exit_rows.wakeups,
    "busy": exit_rows.busy,
}
#: How often each row is measured unless `--runs` says otherwise.
RUNS = dict.fromkeys(ROWS, 5) | {"pio": 10, "mmio": 10, "start": 20, "wakeups": 3}


def main() -> int:
    """The whole of `bench/io`."""
    return Bench("io", __doc__ or "", ROWS, RUNS | linux_rows.RUNS, linux_rows.ROWS).main()
