"""The command line: arguments to a configuration, outcomes to exit codes. The only place that prints."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vmm import __version__, outcome
from vmm.config import (
    BOOT_PROTOCOLS,
    MEMORY_DEFAULT,
    MIB,
    MachineConfig,
    parse_disk,
    parse_net,
    parse_size,
    parse_trace,
)
from vmm.errors import ConfigError, VmmError
from vmm.outcome import Outcome
from vmm.trace import TRACE_KINDS

if TYPE_CHECKING:
    from vmm.machine import Machine, Session

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

_EPILOG = """\
verbs:
  pyvmm doctor        what of this host pyvmm needs or can use, and how to mend what is missing

exit codes:
  0 the guest powered off    2 usage or configuration   120 guest panic    121 guest crash or dead halt
  122 reset with --no-reboot 123 stopped from outside   124 --timeout      125 the host or pyvmm failed

On the terminal: Ctrl-A x ends the VM, Ctrl-A h lists the keys.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pyvmm` with *argv*; the process's exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments[:1] == ["doctor"]:
            return _doctor(arguments[1:])
        return _run(_parser().parse_args(arguments[1:] if arguments[:1] == ["run"] else arguments))
    except VmmError as error:
        say(str(error))
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_HOST
    except BrokenPipeError:
        return EXIT_HOST


def say(text: str) -> None:
    """Print *text* to the user, beside the guest's output."""
    sys.stderr.write(f"pyvmm: {text}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyvmm",
        usage="pyvmm --kernel FILE [--disk IMAGE] [options]",
        description="Boot a Linux kernel in a KVM virtual machine.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-k", "--kernel", required=True, metavar="FILE", help="bzImage or vmlinux to boot")
    add("-i", "--initrd", metavar="FILE", help="initial RAM disk")
    add("-a", "--append", default="", metavar="TEXT", help="kernel command line, after what pyvmm adds")
    add("-d", "--disk", action="append", default=[], metavar="IMAGE[,readonly][,serial=TEXT]",
        help="raw image as a virtio disk; the first is the root file system unless root= says otherwise")  # fmt: skip
    add("-n", "--net", action="append", default=[], metavar="bridge=NAME|tap=NAME[,mac=…][,mtu=…]",
        help="network card on a new tap of a bridge, or on an existing tap")  # fmt: skip
    add("-c", "--cpus", type=int, default=1, metavar="N", help="number of CPUs (1)")
    add("-m", "--memory", metavar="SIZE", help=f"RAM, such as 512M or 2G ({MEMORY_DEFAULT // MIB}M)")
    add("--boot", choices=BOOT_PROTOCOLS, default="auto", help="how to enter the kernel (auto: the fastest)")
    add("--kaslr", action="store_true", help="let a bzImage unpack and move itself, at its own entry")
    add("--serial", default="stdio", metavar="stdio|file:PATH|null", help="where the serial console is (stdio)")
    add("--no-reboot", action="store_true", help="end with exit code 122 when the guest reboots")
    add("--timeout", type=float, metavar="SECONDS", help="end with exit code 124 after this long")
    add("--trace", default="", metavar="KIND[,…]", help=f"tell on stderr of {', '.join(TRACE_KINDS)}")
    add("--stats", action="store_true", help="at the end, print exits, requests and assists")
    add("-v", "--verbose", action="store_true", help="say how the kernel is entered and with which command line")
    add("--version", action="version", version=f"pyvmm {__version__}")
    return parser


def _config(arguments: argparse.Namespace) -> MachineConfig:
    return MachineConfig(
        kernel=arguments.kernel,
        initrd=arguments.initrd,
        append=arguments.append,
        boot=arguments.boot,
        kaslr=arguments.kaslr,
        cpus=arguments.cpus,
        memory_bytes=parse_size(arguments.memory) if arguments.memory else MEMORY_DEFAULT,
        disks=tuple(map(parse_disk, arguments.disk)),
        nets=tuple(map(parse_net, arguments.net)),
        serial=arguments.serial,
        reboot=not arguments.no_reboot,
        timeout_s=arguments.timeout,
        trace=parse_trace(arguments.trace),
    )


def _doctor(arguments: list[str]) -> int:
    from vmm.cli.doctor import doctor

    parser = argparse.ArgumentParser(prog="pyvmm doctor", description="Try everything pyvmm needs of this host.")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    return doctor(sys.stdout, as_json=parser.parse_args(arguments).format == "json")


def cache_directory() -> str:
    """Where pyvmm keeps what it can make again: `$PYVMM_CACHE`, or `pyvmm` in the user's cache directory."""
    own = os.environ.get("PYVMM_CACHE")
    if own:
        return own
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "pyvmm")


def _run(arguments: argparse.Namespace) -> int:
    config = _config(arguments)
    from vmm.kvm.assist.probe import host_kind
    from vmm.machine import Session

    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    cache_dir = cache_directory()
    session = Session(config, host_kind(cache_dir), say=say, trace=_trace, cache_dir=cache_dir)
    try:
        return _exit_code(_boot_until_the_end(session, verbose=arguments.verbose), session)
    finally:
        session.close()
        if arguments.stats:
            from vmm.cli.stats import render

            sys.stderr.write(render(session))


def _boot_until_the_end(session: Session, *, verbose: bool) -> Outcome:
    """Boot, and boot again whenever the guest reboots."""
    from vmm.machine import Machine

    config = session.config
    deadline = None if config.timeout_s is None else time.monotonic() + config.timeout_s
    while True:
        machine = Machine.build(session)
        try:
            if verbose:
                say(machine.description)
                say(f"command line: {machine.command_line()}")
            _stop_on_signals(machine)
            gc.freeze()
            machine.start()
            end = machine.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        finally:
            machine.close()
        if end.kind != outcome.RESET or not config.reboot:
            return end


def _stop_on_signals(machine: Machine) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: machine.stop(f"by {signal.Signals(number).name}"))


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
