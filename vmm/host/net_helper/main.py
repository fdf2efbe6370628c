"""`pyvmm-net-helper`, as systemd, sudo or a person starts it."""

from __future__ import annotations

import argparse
import gc
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING

from vmm.errors import BackendError, ConfigError, VmmError
from vmm.host.net.link import user_name
from vmm.host.net.store import may_administer
from vmm.host.net_helper.allow import ALLOW_LIST, Caller
from vmm.host.net_helper.service import next_connection, serve
from vmm.host.net_helper.units import setup_script

if TYPE_CHECKING:
    from collections.abc import Sequence

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_LISTEN_FDS_START = 3  # sd_listen_fds(3)
_BACKLOG = 128
EXIT_USAGE, EXIT_HOST = 2, 125


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pyvmm-net-helper`; the exit code."""
    parser = argparse.ArgumentParser(
        prog="pyvmm-net-helper",
        description="Give the VMs of ordinary users taps on the networks that /etc/pyvmm/net.toml lets them join.",
        epilog="Without options it serves the sockets of systemd, or the one that is its standard input (sudo).",
    )
    parser.add_argument("--listen", metavar="PATH", help="make a socket at PATH and serve it")
    parser.add_argument("--allow-list", metavar="FILE", default=ALLOW_LIST, help=f"instead of {ALLOW_LIST}")
    parser.add_argument("--print-units", action="store_true", help="print what sets it up, for: sudo sh")
    options = parser.parse_args(argv)
    try:
        if options.print_units:
            sys.stdout.write(setup_script())
        else:
            _help(options.listen, options.allow_list)
    except VmmError as error:
        _say(str(error))
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_HOST
    except KeyboardInterrupt:
        return EXIT_HOST
    return 0


def _help(listen: str | None, allow_list: str) -> None:
    os.environ["PATH"] = _PATH  # sudo may leave the caller's
    if listen:
        _need_right()  # before there is a socket that nobody would serve
        server = _listen(listen)
    elif os.environ.get("LISTEN_PID") == str(os.getpid()):
        _need_right()
        server = socket.socket(fileno=_LISTEN_FDS_START)
    elif stat.S_ISSOCK(os.fstat(0).st_mode):
        _help_one(socket.socket(fileno=os.dup(0)), allow_list)
        return
    else:
        raise ConfigError("there is no socket to serve", fix="see pyvmm-net-helper --help")
    import pyroute2  # noqa: F401  once for all connections

    gc.freeze()
    connection = next_connection(server)
    serve(connection, Caller.of(connection), allow_list, _say)
    os._exit(0)  # to take all modules apart in each child takes 80 ms


def _help_one(connection: socket.socket, allow_list: str) -> None:
    """Serve the *connection* that sudo has handed over, of the user that sudo says it is for."""
    caller = Caller.of(connection)
    if os.environ.get("SUDO_UID") != str(caller.uid):
        raise BackendError(f"standard input is a socket of user {caller.user}, for whom sudo has not started this")
    _need_right()
    serve(connection, caller, allow_list, lambda _: None)  # sudo has logged it


def _need_right() -> None:
    if not may_administer():
        raise BackendError(f"this is {user_name(os.geteuid())}: it needs CAP_NET_ADMIN", fix="run it as root")


def _listen(path: str) -> socket.socket:
    """A socket at *path* that everybody may connect to: the allow-list says what for."""
    os.umask(0o022)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            if probe.connect_ex(path) == 0:
                raise BackendError("another helper serves it", where=path)
        if os.path.exists(path) and stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
        os.makedirs(os.path.dirname(path) or ".", 0o755, exist_ok=True)
        server.bind(path)
        os.chmod(path, 0o666)  # noqa: S103  for everybody
        server.listen(_BACKLOG)
    except BaseException as error:
        server.close()
        if isinstance(error, OSError):
            raise BackendError(f"cannot listen: {error.strerror}", where=path) from error
        raise
    return server


def _say(text: str) -> None:
    sys.stderr.write(f"pyvmm-net-helper: {text}\n")
    sys.stderr.flush()
