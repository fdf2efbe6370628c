"""The command line: arguments to a configuration, outcomes to exit codes. The only place that prints."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time

from vmm import __version__, outcome
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
)
from vmm.errors import ConfigError, VmmError
from vmm.outcome import Outcome
from vmm.trace import TRACE_KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.session import Session

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

OPTIONS = (
    Option("kernel", "bzImage or vmlinux to boot", metavar="FILE", short="k"),
    Option("initrd", "initial RAM disk", metavar="FILE", short="i"),
    Option("append", "kernel command line, after what pyvmm adds", metavar="TEXT", short="a"),
    Option("disk", "raw image as a virtio disk; the first is the root file system unless root= says otherwise",
           metavar="IMAGE[,readonly][,cache=…][,queues=N][,iops=RATE][,bw=RATE]…", short="d", repeatable=True),
    Option("net", "network card on a network of pyvmm net, a bridge or a tap; without root on a lan, or by passt",
           metavar="NETWORK[,name=…]|bridge=NAME|tap=NAME|lan=NAME|user|auto[,mac=…]…", short="n", repeatable=True),
    Option("cpus", "number of CPUs (1)", metavar="N", short="c"),
    Option("memory", f"RAM, such as 512M or 2G ({MEMORY_DEFAULT // MIB}M)", metavar="SIZE", short="m"),
    Option("boot", "how to enter the kernel (auto: the fastest)", metavar="|".join(BOOT_PROTOCOLS)),
    Option("kaslr", "let a bzImage unpack and move itself, at its own entry"),
    Option("transport", "how the virtio devices are connected (mmio)", metavar="|".join(TRANSPORTS)),
    Option("engine", "who does the disks' and network cards' work (native, if it is built)", metavar="|".join(ENGINES)),
    Option("serial", "where the serial console is (stdio)", metavar="stdio|file:PATH|null"),
    Option("console", "what the terminal is in the guest: its serial port, or a virtio console (serial)",
           metavar="|".join(CONSOLES)),
    Option("no-reboot", "end with exit code 122 when the guest reboots"),
    Option("timeout", "end with exit code 124 after this long", metavar="SECONDS"),
    Option("trace", f"tell on stderr of {', '.join(TRACE_KINDS)}", metavar="KIND[,…]"),
    Option("stats", "at the end, print exits, requests and assists"),
    Option("verbose", "say how the kernel is entered and with which command line", short="v"),
    Option("version", "print the version"),
    Option("help", "print this", short="h"),
)  # fmt: skip
DOCTOR_OPTIONS = (
    Option("format", "how to print it (table)", metavar="table|json"),
    Option("help", "print this", short="h"),
)

_USAGE = """\
usage: pyvmm --kernel FILE [--disk IMAGE] [options]

Boot a Linux kernel in a KVM virtual machine.
"""
_EPILOG = """
verbs:
  pyvmm doctor        what of this host pyvmm needs or can use, and how to mend what is missing
  pyvmm net …         networks for guests: made, shown, mended and deleted; pyvmm net --help

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
        if arguments[:1] == ["doctor"]:
            return _doctor(arguments[1:])
        if arguments[:1] == ["net"]:
            from vmm.cli.net import net

            return net(arguments[1:], say)
        options = parse(arguments[1:] if arguments[:1] == ["run"] else arguments, OPTIONS)
        if options.has("help") or options.has("version"):
            sys.stdout.write(_help() if options.has("help") else f"pyvmm {__version__}\n")
            return 0
        return _run(options)
    except VmmError as error:
        say(str(error))
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_HOST
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


def _help() -> str:
    return f"{_USAGE}\noptions:\n{''.join(option.describe() for option in OPTIONS)}{_EPILOG}"


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
        transport=options.one("transport", "mmio"),
        engine=options.one("engine") or None,
        serial=options.one("serial", "stdio"),
        console=options.one("console", "serial"),
        reboot=not options.has("no-reboot"),
        timeout_s=options.seconds("timeout"),
        trace=parse_trace(options.one("trace")),
    )


def _doctor(arguments: list[str]) -> int:
    options = parse(arguments, DOCTOR_OPTIONS)
    if options.has("help"):
        sys.stdout.write(
            "".join(["usage: pyvmm doctor [options]\n\n", *(option.describe() for option in DOCTOR_OPTIONS)])
        )
        return 0
    form = options.one("format", "table")
    if form not in ("table", "json"):
        raise ConfigError(f"{form!r} is no format", where="--format", fix="table or json")
    from vmm.cli.doctor import doctor

    return doctor(sys.stdout, as_json=form == "json")


def cache_directory() -> str:
    """Where pyvmm keeps what it can make again: `$PYVMM_CACHE`, or `pyvmm` in the user's cache directory."""
    own = os.environ.get("PYVMM_CACHE")
    if own:
        return own
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "pyvmm")


def _run(options: Options) -> int:
    config = _config(options)
    from vmm.kvm.assist.probe import host_kind
    from vmm.session import Session

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    cache_dir = cache_directory()
    host = host_kind(cache_dir)
    session = Session(config, host, say=say, trace=_trace, cache_dir=cache_dir)
    if session.assist_options:
        say(f"this host's KVM is software; assisting it, with these kernel options: {' '.join(session.assist_options)}")
    try:
        return _exit_code(_boot_until_the_end(session, verbose=options.has("verbose")), session)
    finally:
        signal.set_wakeup_fd(-1)
        session.close()
        if options.has("stats"):
            from vmm.cli.stats import render

            sys.stderr.write(render(session))


def _boot_until_the_end(session: Session, *, verbose: bool) -> Outcome:
    """Boot, and boot again whenever the guest reboots."""
    from vmm.machine import Machine

    config = session.config
    deadline = None if config.timeout_s is None else time.monotonic() + config.timeout_s
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda number, _: session.stop(f"by {signal.Signals(number).name}"))
    signal.signal(signal.SIGCONT, lambda *_: session.resume())
    if config.console == "virtio":
        signal.signal(signal.SIGWINCH, lambda *_: session.resized())
    signal.set_wakeup_fd(session.wake_fd, warn_on_full_buffer=False)
    while True:
        machine = Machine.build(session)
        try:
            if verbose:
                say(machine.description)
                say(f"command line: {machine.command_line()}")
            gc.freeze()
            machine.start()
            end = machine.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        finally:
            machine.close()
            gc.unfreeze()
        if end.kind != outcome.RESET or not config.reboot:
            return end


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
