"""`pyvmm snapshot` and `pyvmm restore`: a running VM into a file, and out of it again."""

from __future__ import annotations

import os

from vmm.cli.options import Option
from vmm.cli.verb import parse_verb
from vmm.config import MachineConfig, parse_disk, parse_net, parse_vsock
from vmm.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.api.place import Place
    from vmm.cli.options import Options
    from vmm.kvm.assist.probe import HostKind

    Say = Callable[[str], None]

#: How long a snapshot may take to be written.
WRITING_S = 600.0

_SNAPSHOT = (
    Option("parent", "write just what differs from this snapshot, which is needed from then on", metavar="FILE"),
    Option("overlays", "keep what is on overlays too, beside FILE, as for disks with snapshot=on"),
)
_RESTORE = (
    Option("name", "what the VM is called among those that run (vm-1, vm-2, …)", metavar="NAME"),
    Option("disk", "instead of the disks that it had, in their order", metavar="IMAGE[,…]", short="d", repeatable=True),
    Option("net", "instead of the networks that its cards were on, in their order", metavar="NETWORK[,…]", short="n",
           repeatable=True),
    Option("vsock", "where the host reaches sockets of the guest", metavar="PATH[,cid=N]"),
    Option("serial", "where the serial console is", metavar="stdio|quiet|file:PATH|null"),
    Option("detach", "run in the background: print the name once the guest runs"),
    Option("prefault", "read all memory at the start, instead of when the guest looks at it"),
    Option("timeout", "end with exit code 124 after this long", metavar="SECONDS"),
    Option("stats", "at the end, print exits, requests and assists"),
    Option("verbose", "say what it goes on from", short="v"),
)  # fmt: skip


def snapshot(arguments: Sequence[str], say: Say) -> int:  # noqa: ARG001
    """Run `pyvmm snapshot` with *arguments*; the exit code."""
    parsed = parse_verb("snapshot", "NAME FILE", arguments, _SNAPSHOT)
    if parsed is None:
        return 0
    from vmm.api.client import Client

    (name, path), options = parsed
    paths = {"path": path} | ({"parent": options.one("parent")} if options.has("parent") else {})
    with Client(name) as client:
        client.request(
            "snapshot",
            wait_s=WRITING_S,
            overlays=options.has("overlays"),
            **{what: os.path.abspath(path) for what, path in paths.items()},
        )
    return 0


def restore(arguments: Sequence[str], say: Say) -> int:  # noqa: ARG001
    """Run `pyvmm restore` with *arguments*; the exit code, that of the VM."""
    parsed = parse_verb("restore", "FILE", arguments, _RESTORE)
    if parsed is None:
        return 0
    (path,), options = parsed
    if not options.has("detach"):
        return restored(path, options, lambda _place: None)
    from vmm.cli.detach import detached

    return detached(lambda started: restored(path, options, started))


def restored(path: str, options: Options, started: Callable[[Place], None], host: HostKind | None = None) -> int:
    """Let the VM in the file *path* go on, to its end; as `run_here`."""
    from vmm.cli.main import run_here
    from vmm.snapshot.file import Snapshot

    kept = Snapshot(path, prefault=options.has("prefault"))
    try:
        config = _replaced(kept.config, options)
        kept.told = options.has("clone") and config.vsock is not None
        kept.check_disks(config)
        return run_here(config, options, started, kept, host)
    finally:
        kept.close()


def _replaced(config: MachineConfig, options: Options) -> MachineConfig:
    """*config* with what *options* give instead.

    Raises:
        ConfigError: they do not go together.
    """
    changes: dict[str, object] = {"timeout_s": options.seconds("timeout")}
    for name, parse, present in (("disk", parse_disk, config.disks), ("net", parse_net, config.nets)):
        if options.has(name):
            given = tuple(map(parse, options.all(name)))
            if len(given) != len(present):
                raise ConfigError(f"the machine has {len(present)} of them, not {len(given)}", where=f"--{name}")
            changes[f"{name}s"] = given
    if options.has("vsock"):
        changes["vsock"] = parse_vsock(options.one("vsock"))
    if options.has("serial"):
        changes["serial"] = options.one("serial")
    elif config.serial.startswith("file:"):
        # Whoever wrote the snapshot is not to choose what is emptied here.
        raise ConfigError("would be emptied", where=config.serial[5:], fix=f"if it may be: --serial {config.serial}")
    if options.has("clone"):
        from vmm.cli.clone import cloned

        config = cloned(config, options)
    return MachineConfig(**(vars(config) | changes))
