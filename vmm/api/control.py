"""A client of `control.sock`: one JSON object a line each way, as docs/control.md tells."""

from __future__ import annotations

import json
import socket
import threading

from vmm import __version__
from vmm.api.client import PROTOCOL
from vmm.api.commands import AT_ONCE, WAITING
from vmm.errors import ConfigError, VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from vmm.api.commands import Arguments, Command
    from vmm.api.server import Server

#: Of a request, in bytes, without its line end.
LINE_MAX = 64 << 10
#: Requests that wait, of all clients.
WORKERS_MAX = 64

_MISUSE = 'a request is a line such as {"id": 1, "do": "status"}'


class Client:
    """The client at the other end of *channel*. One that does not read its answers is cut off. The api thread's."""

    def __init__(self, server: Server, channel: socket.socket) -> None:
        self._server, self._channel = server, channel
        self._line = bytearray()
        self._waiting = 0
        self._subscribed = self._finished = False
        server.clients.add(self)
        server.loop.watch(channel.fileno(), self._on_readable)
        self._send({"pyvmm": __version__, "protocol": PROTOCOL, "name": server.place.name})

    def tell(self, event: str, details: dict[str, object]) -> None:
        """Send *event*, if it has asked for events."""
        if self._subscribed:
            self._send({"event": event, **details})

    def close(self) -> None:
        """Let it go."""
        if self in self._server.clients:
            self._server.clients.remove(self)
            self._server.loop.unwatch(self._channel.fileno())
            self._channel.close()

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        try:
            if self._channel.send(line) == len(line):
                return
        except OSError:  # it does not read, or is gone
            pass
        self.close()

    def _on_readable(self) -> None:
        try:
            data = self._channel.recv(LINE_MAX)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self._finish()
            return
        self._line += data
        *lines, self._line = self._line.split(b"\n")
        for line in lines:
            if len(line) > LINE_MAX:
                break
            self._take(bytes(line))
        if max(map(len, [*lines, self._line])) > LINE_MAX:
            self._refuse(None, "protocol", f"a line has more than {LINE_MAX} bytes", _MISUSE)
            self.close()

    def _finish(self) -> None:
        """It asks for no more: let it go when all is answered."""
        self._finished = True
        self._server.loop.unwatch(self._channel.fileno())
        if not self._waiting:
            self.close()

    def _take(self, line: bytes) -> None:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict) or not isinstance(request.get("do"), str):
            self._refuse(None, "protocol", "that is no request", _MISUSE)
            return
        number, name = request.pop("id", None), request.pop("do")
        if name == "events":
            self._subscribed = True
            self._send({"id": number, "ok": {}})
        elif name in AT_ONCE:
            self._do(AT_ONCE[name], number, request)
        elif name not in WAITING:
            self._refuse(number, "protocol", f"{name!r} is no request", ", ".join(["events", *AT_ONCE, *WAITING]))
        elif self._server.ended.is_set() or len(self._server.workers) >= WORKERS_MAX:
            self._refuse(number, "host", "too many requests wait already, or the VM is ending", "try again later")
        else:
            self._waiting += 1
            worker = threading.Thread(
                target=self._wait_for, args=(WAITING[name], number, request), name=f"api {name}", daemon=True
            )
            self._server.workers.add(worker)
            worker.start()

    def _do(self, command: Command, number: object, arguments: Arguments) -> None:
        self._send({"id": number, **_result(self._server, command, arguments)})

    def _wait_for(self, command: Command, number: object, arguments: Arguments) -> None:
        """In a thread of its own."""
        worker, result = threading.current_thread(), _result(self._server, command, arguments)
        self._server.loop.call_soon(lambda: self._answer(worker, {"id": number, **result}))

    def _answer(self, worker: threading.Thread, answer: dict[str, Any]) -> None:
        self._server.workers.discard(worker)
        self._waiting -= 1
        if self in self._server.clients:
            self._send(answer)
        if self._finished and not self._waiting:
            self.close()

    def _refuse(self, number: object, kind: str, message: str, fix: str) -> None:
        self._send({"id": number, "error": {"kind": kind, "message": message, "fix": fix}})


def _result(server: Server, command: Command, arguments: Arguments) -> dict[str, Any]:
    """What *command* gives, as the rest of an answer."""
    try:
        return {"ok": command(server, arguments)}
    except VmmError as error:
        return {"error": described(error)}
    except Exception as error:  # noqa: BLE001 - our bug: it costs the request, which tells it, and not the VM
        import traceback

        server.session.say(f"a bug in pyvmm: a request failed:\n{traceback.format_exc()}")
        return {"error": {"kind": "bug", "message": repr(error), "fix": "the VM's own messages have the traceback"}}


def described(error: VmmError) -> dict[str, str]:
    """*error* for the other side."""
    kind = "config" if isinstance(error, ConfigError) else "host"
    return {"kind": kind, "message": str(error).split("\n", 1)[0], "fix": error.fix}
