"""A change on trial: a process of its own that undoes it unless somebody confirms it in time.

It runs before the change begins, so it also undoes what a pyvmm leaves that was killed in the middle, or cut off from
the terminal that it had.
"""

from __future__ import annotations

import subprocess
import sys
import time

from vmm.errors import BackendError
from vmm.host.net.store import Store

_POLL_S = 0.2
_READY = "watching\n"


def watch(store: Store, name: str, token: str, timeout_s: float) -> None:
    """Start the process that takes network *name* back in *timeout_s* seconds, while it is on the trial *token*.

    Raises:
        BackendError: it does not start.
    """
    command = ["setsid", "--fork", sys.executable, "-m", "vmm.host.net.trial", store.root, name, token, str(timeout_s)]
    # Not our stderr: what waits for its end, such as ssh without a terminal, would wait for that of the trial.
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as started:
        if not started.stdout or started.stdout.readline() != _READY:
            raise BackendError("the process that would take it back does not start", where=f"network {name}")


def main(root: str, name: str, token: str, timeout_s: str) -> None:
    """Take the network back when its time is over; nothing, if it was confirmed or has gone."""
    from vmm.host.net.networks import is_on_trial, take_back

    store, deadline = Store(root), time.monotonic() + float(timeout_s)
    sys.stdout.write(_READY)
    sys.stdout.close()
    while is_on_trial(store, name, token):
        if time.monotonic() >= deadline:
            take_back(store, name, token)
            return
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
