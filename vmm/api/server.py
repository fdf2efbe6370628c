"""The api thread: serves the control socket and the console to other processes while the VM runs.

What it takes to serve somebody (JSON, sockets as objects) is imported when somebody comes: a VM that nobody talks to
starts as fast as without.
"""

from __future__ import annotations

import _socket
import os
import struct
import threading
import time

from vmm.api.output import Log, Output
from vmm.api.place import CONSOLE, CONTROL, LOG
from vmm.errors import BackendError
from vmm.eventloop import EventLoop

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from vmm.api.control import Client
    from vmm.api.place import Place
    from vmm.session import Session

#: Control clients and watchers, each. They are the user's own, so this is for mistakes.
CLIENTS_MAX = 256
#: Of one socket, not yet accepted.
_BACKLOG = 128
#: Until a client is let in again after none could be.
_AGAIN_S = 0.1
#: struct ucred: pid, uid, gid.
_UCRED = struct.Struct("3i")


class Server:
    """Serves *session* in the directory *place*, in a thread of its own, until `close`.

    Raises:
        BackendError: the sockets cannot be made.
    """

    def __init__(self, session: Session, place: Place) -> None:
        self.session, self.place = session, place
        self.started_s = time.monotonic()
        self.loop = EventLoop()
        #: Set once the VM has ended.
        self.ended = threading.Event()
        self.clients: set[Client] = set()
        #: Of requests that wait for something.
        self.workers: set[threading.Thread] = set()
        try:
            self._log = Log(place.file(LOG), session.say)
            self.output = Output(self.loop, session.backends.console.tail, self._log)
            self._sockets = [
                self._listen(place.file(CONTROL), self._admit_client),
                self._listen(place.file(CONSOLE), self._admit_watcher),
            ]
        except OSError as error:
            self.loop.close()
            raise BackendError(f"cannot make: {error.strerror}", where=place.path) from error
        session.on_event = self._on_event
        self._thread = threading.Thread(target=self._serve, name="api", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The machine is closed for good: tell all clients the rest, and let them go. The main thread's."""
        self.ended.set()
        self.loop.call_soon(self._retire)
        self._thread.join()
        self.session.on_event = lambda _event, _details: None
        self.session.backends.console.tail.listen(lambda _data: None)
        for listener in self._sockets:
            listener.close()
        self._log.close()
        self.loop.close()

    def _listen(self, path: str, admit: Callable[[socket.socket], None]) -> _socket.socket:
        listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind(path)
        listener.listen(_BACKLOG)
        self._await(listener, admit)
        return listener

    def _await(self, listener: _socket.socket, admit: Callable[[socket.socket], None]) -> None:
        self.loop.watch(listener.fileno(), lambda: self._accept(listener, admit))

    def _serve(self) -> None:
        try:
            self.loop.run()
        except BaseException:  # noqa: BLE001 - our bug: told at once, and the VM goes on without its sockets
            import traceback

            self.session.say(f"a bug in pyvmm has ended its control socket:\n{traceback.format_exc()}")

    # -- in the api thread -------------------------------------------------------------------------------------------

    def _accept(self, listener: _socket.socket, admit: Callable[[socket.socket], None]) -> None:
        import socket

        listening = socket.socket(fileno=listener.fileno())
        try:
            channel, _ = listening.accept()
        except OSError:  # there are no more descriptors: it waits, and would be offered again without end
            self.loop.unwatch(listener.fileno())
            self.loop.call_later(_AGAIN_S, lambda: self._await(listener, admit))
            return
        finally:
            listening.detach()
        channel.setblocking(False)
        _, user, _ = _UCRED.unpack(channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if user not in (0, os.geteuid()) or max(len(self.clients), len(self.output.watchers)) >= CLIENTS_MAX:
            channel.close()
            return
        admit(channel)

    def _admit_client(self, channel: socket.socket) -> None:
        from vmm.api.control import Client

        Client(self, channel)

    def _admit_watcher(self, channel: socket.socket) -> None:
        from vmm.api.watcher import Watcher

        Watcher(self, channel)

    def _on_event(self, event: str, details: dict[str, object]) -> None:
        self.loop.call_soon(lambda: self._tell(event, details))

    def _tell(self, event: str, details: dict[str, object]) -> None:
        for client in [*self.clients]:
            client.tell(event, details)

    def _retire(self) -> None:
        for worker in self.workers:
            worker.join()
        self.loop.call_soon(self._leave)  # after the workers' answers

    def _leave(self) -> None:
        self.output.drain()
        for client in [*self.clients]:
            client.close()
        for watcher in [*self.output.watchers]:
            watcher.close()
        self.loop.stop()
