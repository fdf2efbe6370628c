"""Where the user and the guest talk: the serial console and the virtio one, the terminal, and who types."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.devices.uart16550 import Uart16550
    from vmm.eventloop import EventLoop
    from vmm.host.terminal import Terminal
    from vmm.session import Session
    from vmm.virtio.console import ConsoleDevice

    _Console = Uart16550 | ConsoleDevice


class Consoles:
    """The consoles of one machine, each with the lock of its device; the last one that is added is typed at.

    *press_ctrl_alt_del* and *leave* are what keys at the terminal are for.
    """

    def __init__(
        self, session: Session, loop: EventLoop, press_ctrl_alt_del: Callable[[], None], leave: Callable[[], None]
    ) -> None:
        self._session, self._loop = session, loop
        self._press_ctrl_alt_del, self._leave = press_ctrl_alt_del, leave
        self._all: list[tuple[_Console, threading.Lock]] = []
        self._terminal: Terminal | None = None
        session.backends.on_output_drained(self._on_output_drained)

    def add_serial(self, uart: Uart16550) -> None:
        """The guest prints on *uart*; the user types at it unless there is a virtio console."""
        self._all.append((uart, uart.lock))
        if self._session.backends.interactive and self._session.config.console == "serial":
            self._join_terminal(uart, uart.lock)

    def add_virtio(self, device: ConsoleDevice, lock: threading.Lock) -> None:
        """The user types at *device*, which learns how large the terminal is."""
        self._all.append((device, lock))
        self._session.on_resize(lambda: self._loop.call_soon(device.resized, lock))
        self._join_terminal(device, lock)

    def type(self, data: bytes) -> bool:
        """Type *data*; False: the guest does not read now, none of it was taken. Any thread."""
        device, lock = self._all[-1]
        with lock:
            if device.input_stopped:
                return False
            device.receive(data)
            return True

    def close(self) -> None:
        """Give the terminal back."""
        self._session.on_resize(lambda: None)
        self._session.backends.on_output_drained(lambda: None)
        if self._terminal:
            self._terminal.close()

    def _join_terminal(self, device: _Console, lock: threading.Lock) -> None:
        from vmm.host.terminal import Terminal

        self._terminal = Terminal(
            0,
            self._loop,
            lock,
            deliver=device.receive,
            leave=self._leave,
            ctrl_alt_del=self._press_ctrl_alt_del,
            say=self._session.backends.console.say,
        )
        device.input_wanted = self._terminal.resume

    def _on_output_drained(self) -> None:
        for device, lock in self._all:
            self._loop.call_soon(device.output_drained, lock)
