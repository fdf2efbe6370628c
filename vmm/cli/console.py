"""`pyvmm console` and `pyvmm logs`: what a running VM prints, and typing to it."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time

from vmm.api.client import Client, NoAnswer
from vmm.api.place import CONSOLE, LOG, directory, is_live
from vmm.cli.options import Option
from vmm.cli.verb import parse_verb
from vmm.host.terminal import EscapeFilter, RawMode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

    Say = Callable[[str], None]

_FOLLOW = Option("follow", "go on with what is printed from now on", short="f")
_PIECE = 64 << 10
_LOOK_AGAIN_S = 0.1
_HELP = """
Ctrl-A x       leave the VM alone
Ctrl-A d       press Ctrl-Alt-Del in the guest
Ctrl-A h       this help
Ctrl-A a       send Ctrl-A to the guest (as does Ctrl-A Ctrl-A)
"""


def console(arguments: Sequence[str], say: Say) -> int:
    """Run `pyvmm console` with *arguments*; the exit code."""
    parsed = parse_verb("console", "NAME", arguments, ())
    if parsed is None:
        return 0
    ((name,), _) = parsed
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raw = None
    with Client(name) as client:
        if os.isatty(0):
            say(f"{name}: Ctrl-A x leaves, Ctrl-A h helps")
            raw = RawMode(0)
        try:
            while _attend(client, EscapeFilter() if raw else None):
                say(f"{name}: some output was lost here, because it was not read fast enough\r")
        finally:
            if raw:
                raw.restore()
    return 0


def logs(arguments: Sequence[str], _say: Say) -> int:
    """Run `pyvmm logs` with *arguments*; the exit code."""
    parsed = parse_verb("logs", "NAME", arguments, (_FOLLOW,))
    if parsed is None:
        return 0
    (name,), options = parsed
    with Client(name):  # so that a name that is none is told as by the others
        pass
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    path = os.path.join(directory(name), LOG)
    _show(f"{path}.1", lambda: False)
    while _show(path, lambda: options.has("follow") and is_live(name)):
        time.sleep(_LOOK_AGAIN_S)
    return 0


def _attend(client: Client, keys: EscapeFilter | None) -> bool:
    """Join the user with the console, until one of them leaves; whether the VM goes on without the user's wish."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        try:
            channel.connect(os.path.join(directory(client.name), CONSOLE))
        except OSError:
            return False  # it has just ended
        sources: list[int | socket.socket] = [0, channel]
        while True:
            ready, _, _ = select.select(sources, [], [])
            if channel in ready:
                data = _receive(channel)
                if not data:
                    return _goes_on(client)
                _put(data)
            if 0 in ready:
                typed = os.read(0, _PIECE)
                commands = ""
                if not typed:
                    sources.remove(0)
                elif keys:
                    typed, commands = keys.feed(typed)
                if not _send(channel, typed):
                    return _goes_on(client)
                for command in commands:
                    if command == "x":
                        _put(b"\r\n")
                        return False
                    if command == "d":
                        client.request("ctrl_alt_del")
                    else:
                        _put(_HELP.replace("\n", "\r\n").encode())


def _goes_on(client: Client) -> bool:
    """Whether the VM runs, now that its console has hung up."""
    try:
        return bool(client.request("status")["state"] != "ended")
    except NoAnswer:
        return False


def _receive(channel: socket.socket) -> bytes:
    try:
        return channel.recv(_PIECE)
    except ConnectionResetError:
        return b""


def _send(channel: socket.socket, data: bytes) -> bool:
    try:
        channel.sendall(data)
    except BrokenPipeError:
        return False
    return True


def _show(path: str, more: Callable[[], bool]) -> bool:
    """Print the file, if it is there, and what is added while there may be *more*; whether another takes its place."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:  # the VM has ended, or begins another log just now
        return more()
    with file:
        while True:
            # Before the last look at the file: what is added to it later is added to another.
            goes_on, replaced = more(), not _is_at(path, file)
            while data := file.read(_PIECE):
                _put(data)
            if replaced or not goes_on:
                return goes_on
            time.sleep(_LOOK_AGAIN_S)


def _is_at(path: str, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _put(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
