"""`pyvmm clone`: VMs that go on from where another one is, or from a snapshot, each with what is to be its own."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack, closing, contextmanager
from itertools import count, islice

from vmm.agent.client import Agent
from vmm.api.client import Client
from vmm.api.place import is_live
from vmm.api.warm import Spawned, Warm
from vmm.cli.options import Option
from vmm.cli.snapshot import WRITING_S
from vmm.cli.verb import parse_verb
from vmm.config import DiskConfig, MachineConfig, NetConfig, VsockConfig
from vmm.errors import ConfigError, VmmError
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
_ASK_S = 30.0
#: Gives the card with the address $1 the address $2, and has DHCP ask for what goes with that.
_READDRESS = """\
for path in /sys/class/net/*; do
    [ "$(cat $path/address)" = "$1" ] || continue
    ip link set "${path##*/}" address "$2"
    if pidof udhcpc; then kill -USR1 $(pidof udhcpc); fi
    if command -v networkctl; then networkctl renew "${path##*/}"; fi
done
"""


def clone(arguments: Sequence[str], say: Say) -> int:
    """Run `pyvmm clone` with *arguments*; the exit code."""
    parsed = parse_verb("clone", "NAME|FILE", arguments, _CLONE)
    if parsed is None:
        return 0
    (source,), options = parsed
    names = names_of(source, options)
    with ExitStack() as held:
        is_file = "/" in source or os.path.isfile(source)
        path = os.path.abspath(source) if is_file else held.enter_context(_snapshot_of(source, options))
        snapshot = held.enter_context(closing(Snapshot(path)))
        warm = held.enter_context(Warm())
        clones = [held.enter_context(_spawn(warm, path, name, options)) for name in names]
        for vm in clones:
            vm.keep()
            sys.stdout.write(f"{vm.name}\n")
        sys.stdout.flush()
        for vm in clones:
            _renew(vm, snapshot, say)
    return 0


def cloned(config: MachineConfig, given: Options) -> MachineConfig:
    """*config* with what a clone has to itself, but for what is *given*; its name is.

    Raises:
        ConfigError: it has something that cannot be there twice.
    """
    changes: dict[str, object] = {}
    if not given.has("disk"):
        changes["disks"] = tuple(map(_thrown_away, config.disks))
    if not given.has("net"):
        changes["nets"] = tuple(_joined(net, given.one("name")) for net in config.nets)
    if config.vsock is not None and not given.has("vsock"):
        changes["vsock"] = VsockConfig(cid=config.vsock.cid)
    return MachineConfig(**(vars(config) | changes))


def _thrown_away(disk: DiskConfig) -> DiskConfig:
    """*disk*, whose file nobody writes to."""
    if disk.readonly:
        return disk
    return DiskConfig(**(vars(disk) | {"snapshot": True, "cache": "writeback" if disk.cache == "none" else disk.cache}))


def _joined(net: NetConfig, name: str) -> NetConfig:
    """Another card on the network of *net*, that of the guest *name*."""
    if net.tap:
        raise ConfigError("can have one card only", where=f"tap {net.tap}", fix="say where the clones' cards go: --net")
    return NetConfig(**(vars(net) | {"name": name if net.name else "", "mac": None, "pcap": "", "forwards": ()}))


@contextmanager
def _snapshot_of(name: str, given: Options) -> Iterator[str]:
    """A snapshot of the running VM *name*, for as long as its clones are being made: they hold what they need of it."""
    directory = tempfile.mkdtemp(prefix="pyvmm-clone-", dir=os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108
    try:
        path = os.path.join(directory, "snapshot")
        with Client(name) as client:
            client.request("snapshot", wait_s=WRITING_S, path=path, overlays=True)
        if not given.has("disk"):
            with closing(Snapshot(path)) as snapshot:
                _check_disks(snapshot.config, name)
        yield path
    finally:
        shutil.rmtree(directory)


def _check_disks(config: MachineConfig, name: str) -> None:
    for disk in config.disks:
        if not disk.readonly and not disk.snapshot:
            raise ConfigError(
                f"{name} writes to it",
                where=f"--disk {disk.path}",
                fix=f"start {name} with --disk {disk.path},snapshot=on or overlay=FILE,base={disk.path}",
            )


def names_of(source: str, options: Options) -> list[str]:
    """What the clones are called: as is said, or by the *source*, and then no other VM has that name.

    Raises:
        ConfigError: there cannot be so many.
    """
    number, given = options.number("count", 1), options.one("name")
    if not number:
        raise ConfigError("none are to be made", where="--count 0")
    if given:
        return [given] if number == 1 else [f"{given}-{index + 1}" for index in range(number)]
    base = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in os.path.basename(source))
    numbered = (f"{base.strip('-') or 'clone'}-{index}" for index in count(1))
    return list(islice((name for name in numbered if not is_live(name)), number))


def _spawn(warm: Warm, path: str, name: str, options: Options) -> Spawned:
    def filled(option: str) -> list[str] | None:
        return [text.replace("{name}", name) for text in options.all(option)] if options.has(option) else None

    vsock = filled("vsock")
    return warm.spawn(
        path,
        name=name,
        disks=filled("disk"),
        nets=filled("net"),
        vsock=vsock[0] if vsock else None,
        timeout_s=options.seconds("timeout"),
        clone=True,
    )


def _renew(vm: Spawned, snapshot: Snapshot, say: Say) -> None:
    """Tell the guest of *vm* what has changed since the *snapshot*: the time, its luck, and its cards' addresses."""
    if snapshot.config.vsock is None:
        return
    try:
        with Client(vm.name) as client:
            status = client.request("status")
        agent = Agent(status["vsock"], patience_s=_AGENT_S)
        agent.renew()
        for index, new in enumerate(status["macs"]):
            device = snapshot.machine["chips"][f"eth{index}"]["core"]["device"]
            old = device["filter"]["address"].hex(":") if device else new  # one that is not in use has none yet
            if old != new:
                agent.run(["sh", "-c", _READDRESS, "sh", old, new], timeout_s=_ASK_S)
    except VmmError as error:
        say(f"{vm.name}: has the time, random numbers and addresses of what it was cloned from: {error}")
