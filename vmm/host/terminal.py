"""The user's keyboard: a terminal in raw mode with an escape key, or whatever else stdin is."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import termios
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, Protocol

    class Loop(Protocol):
        """What a terminal needs of the event loop."""

        def watch(self, fd: int, callback: Callable[[], None], lock: threading.Lock | None = None) -> None:
            """Call *callback* (holding *lock*) whenever *fd* is readable, or PermissionError if it always is."""

        def unwatch(self, fd: int) -> None:
            """Stop watching *fd*."""

        def call_soon(self, callback: Callable[[], None], lock: threading.Lock | None = None) -> None:
            """Run *callback* (holding *lock*) on the loop's next turn."""


#: The most that is read at once.
READ_SIZE = 1024

ESCAPE = 0x01  # Ctrl-A
HELP = """
Ctrl-A x       end the virtual machine
Ctrl-A d       press Ctrl-Alt-Del in the guest
Ctrl-A h       this help
Ctrl-A a       send Ctrl-A to the guest (as does Ctrl-A Ctrl-A)
"""


def window_size(fd: int) -> tuple[int, int] | None:
    """Columns and rows of the terminal *fd*; None if it is none."""
    try:
        return os.get_terminal_size(fd)
    except OSError:
        return None


class EscapeFilter:
    """Takes the user's commands out of what is typed. Pure: bytes in; bytes for the guest and commands out."""

    def __init__(self) -> None:
        self._escaped = False

    def feed(self, data: bytes) -> tuple[bytes, str]:
        """What goes to the guest, and the commands (`x`, `d`, `h`) in the order typed; other keys go through."""
        passed = bytearray()
        commands = ""
        for byte in data:
            if not self._escaped:
                self._escaped = byte == ESCAPE
                if not self._escaped:
                    passed.append(byte)
                continue
            self._escaped = False
            if byte in b"xdh":
                commands += chr(byte)
            elif byte in (ESCAPE, ord("a")):
                passed.append(ESCAPE)
            else:
                passed += bytes((ESCAPE, byte))
        return bytes(passed), commands


class RawMode:
    """Keeps the terminal *fd* raw from now until `restore`, which is idempotent and happens whatever ends the process.

    "Whatever" is: `restore` itself, the interpreter's exit, and SIGHUP, SIGQUIT and SIGTERM where the process has not
    chosen to handle them (they then do what they always do). Nothing can be done about SIGKILL; a shell puts the
    terminal right itself when a job was killed. To be made in the main thread for the signals' sake.

    Output processing stays as it is, so that the host's own messages keep their line ends.
    """

    _SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)

    def __init__(self, fd: int) -> None:
        self._fd = fd
        raw = termios.tcgetattr(fd)
        self._saved: list[Any] | None = termios.tcgetattr(fd)
        raw[0] &= ~(termios.BRKINT | termios.INPCK | termios.ISTRIP | termios.IXON)
        raw[0] &= ~(termios.ICRNL | termios.IGNCR | termios.INLCR)
        raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
        raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
        atexit.register(self.restore)
        self._handled: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():
            for number in self._SIGNALS:
                if signal.getsignal(number) is signal.SIG_DFL:
                    signal.signal(number, self._restore_and_die)
                    self._handled.append(number)
        # TCSANOW, not TCSADRAIN: a terminal whose output is stopped must not keep us waiting.
        termios.tcsetattr(fd, termios.TCSANOW, raw)

    def restore(self) -> None:
        """Put the terminal back as it was found."""
        saved, self._saved = self._saved, None
        if saved is None:
            return
        try:  # noqa: SIM105  contextlib costs start-up time
            termios.tcsetattr(self._fd, termios.TCSANOW, saved)
        except termios.error:
            pass  # the terminal is gone (hung up); there is nothing left to put right
        for number in self._handled:
            if signal.getsignal(number) == self._restore_and_die:
                signal.signal(number, signal.SIG_DFL)
        atexit.unregister(self.restore)

    def _restore_and_die(self, number: int, _frame: FrameType | None) -> None:
        self.restore()
        os.kill(os.getpid(), number)


class Terminal:
    """Feeds a device with what comes from *fd*, in the loop's thread, no faster than the device takes it.

    *deliver* is called with *lock* held; when it says False, reading stops until `resume`. On a terminal, *leave*,
    *ctrl_alt_del* and *say* (with the help text) are called for the user's commands, *lock* held too; otherwise bytes
    pass as they are. The end of the input ends the reading, not the machine.
    """

    def __init__(
        self,
        fd: int,
        loop: Loop,
        lock: threading.Lock,
        *,
        deliver: Callable[[bytes], bool],
        leave: Callable[[], None],
        ctrl_alt_del: Callable[[], None],
        say: Callable[[str], None],
    ) -> None:
        self._fd = fd
        self._loop = loop
        self._lock = lock
        self._deliver = deliver
        self._leave = leave
        self._ctrl_alt_del = ctrl_alt_del
        self._say = say
        is_terminal = os.isatty(fd)
        self._raw_mode = RawMode(fd) if is_terminal else None
        self._filter = EscapeFilter() if is_terminal else None
        self._reading = False
        self._ended = False
        self._start()

    def resume(self) -> None:
        """The device takes input again. Any thread."""
        self._loop.call_soon(self._start)

    def close(self) -> None:
        """Stop reading and put the terminal back as it was. Once the loop has stopped, or in its thread."""
        self._ended = True
        self._stop()
        if self._raw_mode is not None:
            self._raw_mode.restore()

    def _start(self) -> None:
        if self._reading or self._ended:
            return
        self._reading = True
        try:
            self._loop.watch(self._fd, self._on_readable, self._lock)
        except PermissionError:  # a regular file or /dev/null: always readable, and epoll refuses it
            self._loop.call_soon(self._read_on, self._lock)

    def _stop(self) -> None:
        self._reading = False
        self._loop.unwatch(self._fd)

    def _read_on(self) -> None:
        if self._reading:
            self._on_readable()
        if self._reading:
            self._loop.call_soon(self._read_on, self._lock)

    def _on_readable(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            data = b""  # the terminal was hung up
        if not data:
            self._ended = True
            self._stop()
            return
        commands = ""
        if self._filter is not None:
            data, commands = self._filter.feed(data)
        if data and not self._deliver(data):
            self._stop()
        for command in commands:
            if command == "x":
                self._leave()
            elif command == "d":
                self._ctrl_alt_del()
            else:
                self._say(HELP)
