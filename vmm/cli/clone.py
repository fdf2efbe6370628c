"""`pyvmm clone`: VMs that go on from where another one is, or from a snapshot, each with what is to be its own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from itertools import count

from vmm.agent.client import Agent
from vmm.agent.wire import AgentError
from vmm.api.client import Client
from vmm.api.place import is_live
from vmm.api.warm import Spawned, Warm
from vmm.cli.options import Option
from vmm.cli.snapshot import WRITING_S
from vmm.cli.verb import parse_verb
from vmm.errors import ConfigError
from vmm.snapshot.file import Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.cli.options import Options

    Say = Callable[[str], None]

_CLONE = (
    Option("count", "how many (1)", metavar="N"),
    Option("name", "what the clone is called; of several, NAME-1, NAME-2, … (by what is cloned)", metavar="NAME"),
    Option("disk", "instead of the disks that it had, in their order; {name} is the clone's", metavar="IMAGE[,…]",
           short="d", repeatable=True),
    Option("net", "instead of the networks that its cards were on, in their order; {name} is the clone's",
           metavar="NETWORK[,…]", short="n", repeatable=True),
    Option("vsock", "where the host reaches sockets of the guest; {name} is the clone's", metavar="PATH[,cid=N]"),
    Option("timeout", "end each with exit code 124 after this long", metavar="SECONDS"),
)  # fmt: skip
#: An agent that does not answer by then is none.
_AGENT_S = 5.0


def clone(arguments: Sequence[str], say: Say) -> int:
    """Run `pyvmm clone` with *arguments*; the exit code."""
    parsed = parse_verb("clone", "NAME|FILE", arguments, _CLONE)
    if parsed is None:
        return 0
    (source,), options = parsed
    number = options.number("count", 1)
    is_file = "/" in source or os.path.isfile(source)
    with ExitStack() as held:
        path = source if is_file else held.enter_context(_snapshot_of(source))
        warm = held.enter_context(Warm())
        base = options.one("name") or _name_after(source)
        clones = [
            held.enter_context(_spawn(warm, path, name, options))
            for name in _names(base, number, exact="name" in options and number == 1)
        ]
        for vm in clones:
            vm.keep()
    for vm in clones:
        sys.stdout.write(f"{vm.name}\n")
    sys.stdout.flush()
    for vm in clones:
        _renew(vm, say)
    return 0
