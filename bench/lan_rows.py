"""Rows of `bench/net`: frames through a lan's switch, beside the kernel's bridge."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import closing
from unittest.mock import patch

from bench import network
from bench.command import say
from bench.compiled import compiled
from bench.errors import BenchError
from bench.report import Row
from vmm.host.lan.port import open_lan
from vmm.host.net.bridge import create_bridge_tap

_SECONDS = 2
_BRIDGE = "bench0"
#: A port of a bridge forwards once it has a carrier (net/core/link_watch.c).
_CARRIER_S = 0.5


def frames(runs: int) -> list[Row]:
    """64-byte frames from one port to another."""
    own: list[float] = []
    peer: list[float] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        network.namespace(),
        patch.dict(os.environ, XDG_RUNTIME_DIR=directory),
    ):
        network.ip(f"link add {_BRIDGE} type bridge")
        network.ip(f"link set {_BRIDGE} up")
        for turn in range(runs + 1):
            say(f"lan: {turn} of {runs}")
            through = _through_switch(), _through_bridge()
            if turn:
                own.append(through[0])
                peer.append(through[1])
    clock = (
        f"frames that come out of one port in {_SECONDS} s while a thread writes them to another as fast as they are "
        "taken, a write and a read each, without guests"
    )
    return [
        Row("64-byte frames, port to port", "1/s", clock, 0.3, own, "the kernel's bridge", peer, more_is_better=True)
    ]


def _through_switch() -> float:
    with closing(open_lan("bench")) as out, closing(open_lan("bench")) as into:
        return _rate(out.fileno(), into.fileno())


def _through_bridge() -> float:
    with closing(create_bridge_tap(_BRIDGE)) as out, closing(create_bridge_tap(_BRIDGE)) as into:
        time.sleep(_CARRIER_S)
        return _rate(out.queues[0].fileno(), into.queues[0].fileno())


def _rate(out: int, into: int) -> float:
    program = compiled("frames", ["host/frames.c"], ["-O2", "-Wall", "-Wextra", "-Werror", "-pthread"])
    done = subprocess.run(
        [program, str(out), str(into), str(_SECONDS)], pass_fds=[out, into], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchError(done.stderr.strip())
    count, nanoseconds = map(int, done.stdout.split())
    return count * 1e9 / nanoseconds
