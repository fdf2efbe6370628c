"""The other end of the control socket: how programs, the command line among them, talk to a running VM."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any, Self

from vmm.api import place
from vmm.errors import ConfigError, HostError, VmmError

#: How long an answer may take by default, in seconds.
TIMEOUT_S = 30.0
PROTOCOL = 1
_ANSWER_MAX = 16 << 20
_PIECE = 64 << 10
_AGAIN_S = 0.01


class NoSuchVm(ConfigError):
    """No VM of that name is running."""


class NoAnswer(HostError):
    """The VM does not answer in time, or has ended before it answered."""


class Client:
    """A connection to the running VM *name*, or to the control socket at the path *name* if there is a slash in it.

    Requests are answered one after the other; for others meanwhile there are other clients. Not for several threads.

    Raises:
        NoSuchVm, NoAnswer: as they say.
    """

    def __init__(self, name: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._path = name if "/" in name else os.path.join(place.directory(name), place.CONTROL)
        self._name, self._timeout_s = name, timeout_s
        self._received = bytearray()
        self._number = 0
        self._events: list[dict[str, Any]] = []
        deadline = time.monotonic() + timeout_s
        self._socket = _connect(self._path, name, deadline)
        try:
            greeting = self._next(deadline)
            if greeting.get("protocol") != PROTOCOL:
                raise HostError(f"is of pyvmm {greeting.get('pyvmm')}, which speaks otherwise", where=f"VM {name}")
        except BaseException:
            self.close()
            raise
        #: The VM's name and version, as it says.
        self.name, self.version = str(greeting["name"]), str(greeting["pyvmm"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(self, do: str, *, wait_s: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Ask for *do* with *arguments*, as in docs/control.md, and wait at most *wait_s* for what is answered.

        Raises:
            ConfigError, HostError: the VM refuses or fails.
            NoAnswer: as it says.
        """
        deadline = time.monotonic() + (self._timeout_s if wait_s is None else wait_s)
        self._number += 1
        line = json.dumps({"id": self._number, "do": do, **arguments}).encode() + b"\n"
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._socket.sendall(line)
        except OSError as error:
            raise self._no_answer(error) from error
        while True:
            message = self._next(deadline)
            if "event" in message:
                self._events.append(message)
            elif message.get("id") in (self._number, None):
                break
        if "error" in message:
            raise error_of(message["error"], f"VM {self.name}")
        answer: dict[str, Any] = message["ok"]
        return answer

    def events(self, *, timeout_s: float | None = None) -> Iterator[dict[str, Any]]:
        """What happens to the VM from now on, until it has ended; at most *timeout_s* between two (None: any time).

        Raises:
            NoAnswer: nothing has happened for so long, or the VM is gone without a word.
        """
        self.request("events")
        return self._stream(timeout_s)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def _stream(self, timeout_s: float | None) -> Iterator[dict[str, Any]]:
        while True:
            if not self._events:
                self._events.append(self._next(None if timeout_s is None else time.monotonic() + timeout_s))
            event = self._events.pop(0)
            if "event" in event:
                yield event
                if event["event"] == "ended":
                    return

    def _next(self, deadline: float | None) -> dict[str, Any]:
        """The next message."""
        while b"\n" not in self._received:
            try:
                self._socket.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
                data = self._socket.recv(_PIECE)
            except OSError as error:
                raise self._no_answer(error) from error
            self._received += data
            if not data or len(self._received) > _ANSWER_MAX:
                raise self._no_answer(ConnectionResetError())
        line, _, self._received = self._received.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise self._no_answer(ValueError())
        return message

    def _no_answer(self, error: Exception) -> NoAnswer:
        what = "does not answer in time" if isinstance(error, TimeoutError) else "has ended"
        return NoAnswer(what, where=f"VM {self._name}", fix="" if what == "has ended" else "pyvmm kill ends it")


def wait_until_gone(name: str, timeout_s: float) -> bool:
    """Wait until nothing is left of the VM *name*; whether that came within *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while place.is_live(name):
        if time.monotonic() > deadline:
            return False
        time.sleep(_AGAIN_S)
    return True


def _connect(path: str, name: str, deadline: float) -> socket.socket:
    while True:
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            channel.settimeout(max(0.001, deadline - time.monotonic()))
            channel.connect(path)
            return channel
        except OSError as error:
            channel.close()
            if "/" in name or not place.is_live(name):
                running = ", ".join(place.running()) or "none"
                raise NoSuchVm("no such VM is running", where=name, fix=f"running: {running}") from error
            if time.monotonic() > deadline:
                raise NoAnswer("does not listen", where=f"VM {name}", fix="pyvmm kill ends it") from error
            time.sleep(_AGAIN_S)  # it is about to, or just ending


def error_of(error: dict[str, Any], where: str = "") -> VmmError:
    """What the other side has described as *error*."""
    kind = ConfigError if error.get("kind") in ("config", "protocol") else HostError
    return kind(str(error.get("message")), where=where, fix=str(error.get("fix", "")))
