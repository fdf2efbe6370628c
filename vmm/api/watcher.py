"""A client of `console.sock`: is sent the last of what the guest has printed, then all that it prints, and may type."""

from __future__ import annotations

import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.api.server import Server

_READ_SIZE = 1024
#: How soon a guest that did not read is offered the input again.
_AGAIN_S = 0.05


class Watcher:
    """The watcher at the other end of *channel*. One that does not read is cut off. The api thread's."""

    def __init__(self, server: Server, channel: socket.socket) -> None:
        self._server, self._channel = server, channel
        self._typed = b""
        server.output.drain()  # so that the past ends where the stream begins
        server.output.watchers.add(self)
        server.loop.watch(channel.fileno(), self._on_readable)
        self.send(server.output.past)

    def send(self, data: bytes) -> None:
        """Show *data*."""
        try:
            if data and self._channel.send(data) < len(data):
                self.close()
        except OSError:  # it does not read, or is gone
            self.close()

    def close(self) -> None:
        """Let it go."""
        if self in self._server.output.watchers:
            self._server.output.watchers.remove(self)
            self._server.loop.unwatch(self._channel.fileno())
            self._channel.close()

    def _on_readable(self) -> None:
        try:
            self._typed = self._channel.recv(_READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self._typed = b""
        if not self._typed:
            self.close()
        elif not self._type():
            self._server.loop.unwatch(self._channel.fileno())
            self._server.loop.call_later(_AGAIN_S, self._try_again)

    def _try_again(self) -> None:
        if self not in self._server.output.watchers:
            return
        if self._type():
            self._server.loop.watch(self._channel.fileno(), self._on_readable)
        else:
            self._server.loop.call_later(_AGAIN_S, self._try_again)

    def _type(self) -> bool:
        """Whether the guest has taken what was typed; not while somebody else is busy with the machine."""
        session = self._server.session
        if not session.presence.acquire(blocking=False):
            return False
        try:
            return session.machine is not None and session.machine.type(self._typed)
        finally:
            session.presence.release()
