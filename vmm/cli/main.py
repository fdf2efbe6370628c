"""The command line: arguments to a configuration, outcomes to exit codes. The only place that prints."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time

from vmm import __version__, outcome
from vmm.cache import cache_directory
from vmm.cli.options import Option, Options, parse
from vmm.config import (
    BOOT_PROTOCOLS,
    CONSOLES,
    ENGINES,
    MEMORY_DEFAULT,
    MIB,
    TRANSPORTS,
    MachineConfig,
    parse_disk,
    parse_net,
    parse_size,
    parse_trace,
    parse_vsock,
)
from vmm.errors import ConfigError, VmmError
from vmm.outcome import Outcome
from vmm.trace import TRACE_KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.api.place import Place
    from vmm.kvm.assist.probe import HostKind
    from vmm.session import Session
    from vmm.snapshot.file import Snapshot

    Started = Callable[[Place], None]

EXIT_USAGE = 2
EXIT_HOST = 125
_EXIT_CODES = {
    outcome.POWERED_OFF: 0,
    outcome.PANIC: 120,
    outcome.CRASH: 121,
    outcome.HALTED: 121,
    outcome.RESET: 122,
    outcome.STOPPED: 123,
    outcome.TIMEOUT: 124,
}
#: Two vCPU threads and a busy third share the GIL best at this switch interval (docs/decisions/0003-gil.md).
_SWITCH_INTERVAL_S = 1e-5
_TAIL_LINES = 20
#: What ends a VM.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)

OPTIONS = (
    Option("kernel", "bzImage or vmlinux to boot", metavar="FILE", short="k"),
    Option("initrd", "initial RAM disk", metavar="FILE", short="i"),
    Option("append", "kernel command line, after what pyvmm adds", metavar="TEXT", short="a"),
    Option("disk", "raw image or overlay as a virtio disk; the first is the root disk unless root= says otherwise",
           metavar="IMAGE[,readonly][,cache=…][,snapshot=on]…|overlay=FILE[,base=IMAGE]…", short="d", repeatable=True),
    Option("net", "network card on a network of pyvmm net, a bridge or a tap; without root on a lan, or by passt",
           metavar="NETWORK[,name=…]|bridge=NAME|tap=NAME|lan=NAME|user|auto[,mac=…]…", short="n", repeatable=True),
    Option("vsock", "let programs of the host reach sockets of the guest, through a Unix socket",
           metavar="PATH|auto[,cid=N]"),
    Option("exec", "boot, run this in the guest by its agent, end the VM: the exit code is the command's",
           metavar="COMMAND"),
    Option("cpus", "number of CPUs (1)", metavar="N", short="c"),
    Option("memory", f"RAM, such as 512M or 2G ({MEMORY_DEFAULT // MIB}M)", metavar="SIZE", short="m"),
    Option("boot", "how to enter the kernel (auto: the fastest)", metavar="|".join(BOOT_PROTOCOLS)),
    Option("kaslr", "let a bzImage unpack and move itself, at its own entry"),
    Option("transport", "how the virtio devices are connected (mmio)", metavar="|".join(TRANSPORTS)),
    Option("engine", "who does the disks' and network cards' work (native, if it is built)", metavar="|".join(ENGINES)),
    Option("serial", "where the serial console is (stdio)", metavar="stdio|quiet|file:PATH|null"),
    Option("console", "what the terminal is in the guest: its serial port, or a virtio console (serial)",
           metavar="|".join(CONSOLES)),
    Option("name", "what the VM is called among those that run (vm-1, vm-2, …)", metavar="NAME"),
    Option("detach", "run in the background: print the name once the guest runs"),
    Option("no-reboot", "end with exit code 122 when the guest reboots"),
    Option("timeout", "end with exit code 124 after this long", metavar="SECONDS"),
    Option("trace", f"tell on stderr of {', '.join(TRACE_KINDS)}", metavar="KIND[,…]"),
    Option("stats", "at the end, print exits, requests and assists"),
    Option("verbose", "say how the kernel is entered and with which command line", short="v"),
    Option("version", "print the version"),
    Option("help", "print this", short="h"),
)  # fmt: skip
#: Verbs: the module and function that do them, taking the arguments and `say` and giving the exit code; and their help.
VERBS = {
    "ps": ("vmm.cli.ps", "ps", "the running VMs"),
    "info": ("vmm.cli.ps", "info", "one of them at length"),
    "pause": ("vmm.cli.control", "pause", "stop a VM's processors until pyvmm resume"),
    "resume": ("vmm.cli.control", "resume", "let them go on"),
    "stop": ("vmm.cli.control", "stop", "ask the guest to shut down, and end the VM"),
    "kill": ("vmm.cli.control", "kill", "end a VM at once"),
    "console": ("vmm.cli.console", "console", "the terminal of a VM"),
    "logs": ("vmm.cli.console", "logs", "what a VM has printed"),
    "exec": ("vmm.cli.exec", "main", "run a command in a guest that has pyvmm's agent"),
    "snapshot": ("vmm.cli.snapshot", "snapshot", "write all of a running VM to a file"),
    "restore": ("vmm.cli.snapshot", "restore", "let a VM go on from such a file"),
    "clone": ("vmm.cli.clone", "clone", "make VMs that go on from where another one is, or from such a file"),
    "doctor": ("vmm.cli.doctor", "main", "what of this host pyvmm needs or can use, and how to mend what is missing"),
    "disk": ("vmm.cli.disk", "disk", "overlays over images: made, shown and written back"),
    "net": ("vmm.cli.net", "net", "networks for guests: made, shown, mended and deleted"),
}

_USAGE = """\
usage: pyvmm --kernel FILE [--disk IMAGE] [options]

Boot a Linux kernel in a KVM virtual machine.
"""
_EPILOG = """
exit codes:
  0 the guest powered off    2 usage or configuration   120 guest panic    121 guest crash or dead halt
  122 reset with --no-reboot 123 stopped from outside   124 --timeout      125 the host or pyvmm failed

On the terminal: Ctrl-A x ends the VM, Ctrl-A h lists the keys.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pyvmm` with *argv*; the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _occupy_standard_streams()
    try:
        if arguments and arguments[0] in VERBS:
            return _do(arguments[0], arguments[1:])
        if arguments and not arguments[0].startswith("-") and arguments[0] != "run":
            raise ConfigError("there is no such verb", where=arguments[0], fix="pyvmm --help lists them all")
        options = parse(arguments[1:] if arguments[:1] == ["run"] else arguments, OPTIONS)
        if options.has("help") or options.has("version"):
            sys.stdout.write(_help() if options.has("help") else f"pyvmm {__version__}\n")
            return 0
        return _run(options)
    except VmmError as error:
        return failed(error)
    except BrokenPipeError:
        return EXIT_HOST


def _occupy_standard_streams() -> None:
    """Open what of stdin, stdout and stderr is closed, or a disk image would get its number, and the guest's output."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def say(text: str) -> None:
    """Print *text* to the user, beside the guest's output."""
    sys.stderr.write(f"pyvmm: {text}\n")
    sys.stderr.flush()


def failed(error: VmmError) -> int:
    """Tell the user of *error*; the exit code that means it."""
    say(str(error))
    return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_HOST


def _do(verb: str, arguments: list[str]) -> int:
    from importlib import import_module

    module, function, _ = VERBS[verb]
    code: int = getattr(import_module(module), function)(arguments, say)
    return code


def _help() -> str:
    options = "".join(option.describe() for option in OPTIONS)
    verbs = "".join(f"  pyvmm {verb:<13} {told}\n" for verb, (_, _, told) in VERBS.items())
    return f"{_USAGE}\noptions:\n{options}\nverbs (pyvmm VERB --help):\n{verbs}{_EPILOG}"


def _config(options: Options) -> MachineConfig:
    if not options.has("kernel"):
        raise ConfigError(
            "no kernel is given", where="--kernel", fix="pyvmm --kernel FILE; pyvmm --help lists all options"
        )
    return MachineConfig(
        kernel=options.one("kernel"),
        initrd=options.one("initrd") or None,
        append=options.one("append"),
        boot=options.one("boot", "auto"),
        kaslr=options.has("kaslr"),
        cpus=options.number("cpus", 1),
        memory_bytes=parse_size(options.one("memory")) if options.has("memory") else MEMORY_DEFAULT,
        disks=tuple(map(parse_disk, options.all("disk"))),
        nets=tuple(map(parse_net, options.all("net"))),
        vsock=parse_vsock(options.one("vsock", "auto")) if options.has("vsock") or options.has("exec") else None,
        transport=options.one("transport", "mmio"),
        engine=options.one("engine") or None,
        serial=options.one("serial", "quiet" if options.has("exec") else "stdio"),
        console=options.one("console", "serial"),
        reboot=not options.has("no-reboot"),
        timeout_s=options.seconds("timeout"),
        trace=parse_trace(options.one("trace")),
    )


def _run(options: Options) -> int:
    if not options.has("detach"):
        return booted(options, lambda _place: None)
    from vmm.cli.detach import detached

    return detached(lambda started: booted(options, started))


def booted(options: Options, started: Started, host: HostKind | None = None) -> int:
    """Boot what *options* say, to its end; as `run_here`."""
    return run_here(_config(options), options, started, None, host)


def run_here(
    config: MachineConfig,
    options: Options,
    started: Started,
    snapshot: Snapshot | None = None,
    host: HostKind | None = None,
) -> int:
    """Run *config* to its end, from *snapshot* or from the start; *started* is called as soon as its guest runs.

    *host* is this one's kind, where that is known already.
    """
    from vmm.api.place import claim
    from vmm.kvm.assist.probe import host_kind

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    place = claim(options.one("name"))
    try:
        return _run_at(place, config, options, host or host_kind(cache_directory()), started, snapshot)
    finally:
        place.release()


def _run_at(  # noqa: PLR0917
    place: Place,
    config: MachineConfig,
    options: Options,
    host: HostKind,
    started: Started,
    snapshot: Snapshot | None,
) -> int:
    from vmm.session import Session

    session = Session(
        config, host, say=say, trace=_trace, cache_dir=cache_directory(), directory=place.path, snapshot=snapshot
    )
    if session.assist_options and snapshot is None:
        say(f"this host's KVM is software; assisting it, with these kernel options: {' '.join(session.assist_options)}")
    try:
        if options.has("exec"):
            return _run_errand(options, session, place)
        return _exit_code(_boot_until_the_end(session, place, started, verbose=options.has("verbose")), session)
    finally:
        signal.set_wakeup_fd(-1)
        session.close()
        if options.has("stats"):
            from vmm.cli.stats import render

            sys.stderr.write(render(session))


def _run_errand(options: Options, session: Session, place: Place) -> int:
    """Boot for one command; its exit code, or how the guest ended before it had one."""
    from vmm.cli.exec import Errand

    errand = Errand(options.one("exec"), session)
    end = _boot_until_the_end(session, place, lambda _: errand.begin(), verbose=options.has("verbose"))
    code = errand.end() if end.kind == outcome.STOPPED else None
    if code is not None:
        return code
    if end.kind == outcome.POWERED_OFF:
        say("the guest powered off before the command had ended")
    return _exit_code(end, session) or EXIT_HOST


def _boot_until_the_end(session: Session, place: Place, started: Started, *, verbose: bool) -> Outcome:
    """Boot, and boot again whenever the guest reboots."""
    from vmm.machine import Machine

    config = session.config
    deadline = None if config.timeout_s is None else time.monotonic() + config.timeout_s
    for number in ENDING_SIGNALS:
        signal.signal(number, lambda number, _: session.stop(f"by {signal.Signals(number).name}"))
    signal.signal(signal.SIGCONT, lambda *_: session.resume())
    if config.console == "virtio":
        signal.signal(signal.SIGWINCH, lambda *_: session.resized())
    signal.set_wakeup_fd(session.wake_fd, warn_on_full_buffer=False)
    server: Server | None = None
    try:
        while True:
            machine = Machine.build(session)
            try:
                if verbose:
                    say(machine.description)
                    say(f"command line: {machine.command_line()}")
                gc.freeze()
                machine.start()
                if server is None:  # now, because its import would keep the guest waiting
                    from vmm.api.server import Server

                    server = Server(session, place)
                    started(place)
                end = machine.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            finally:
                machine.close()
                gc.unfreeze()
            if end.kind == outcome.RESET and session.shut_down_by:
                end = Outcome(outcome.STOPPED, f"shut down {session.shut_down_by}")
            if end.kind != outcome.RESET or not config.reboot:
                session.tell("ended", outcome=end.kind, message=end.message)
                return end
            session.tell("rebooted")
    finally:
        if server is not None:
            server.close()


def _exit_code(end: Outcome, session: Session) -> int:
    """Tell the user how it ended, unless all went well."""
    if end.kind == outcome.DEBUG_EXIT:
        return (end.status << 1 | 1) & 0xFF
    code = _EXIT_CODES[end.kind]
    if code and end.kind != outcome.STOPPED:
        say(f"guest panic: {end.message}" if end.kind == outcome.PANIC else end.message)
        if end.report:
            sys.stderr.write(end.report + "\n")
        if end.kind == outcome.CRASH and session.backends.console.tail.lines(1):
            sys.stderr.write("last console lines:\n")
            sys.stderr.writelines(f"  {line}\n" for line in session.backends.console.tail.lines(_TAIL_LINES))
    return code


def _trace(line: str) -> None:
    sys.stderr.write(line + "\n")
