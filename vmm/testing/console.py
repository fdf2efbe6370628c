"""The console of a VM under test: what the guest has printed, from the VM's log, and pexpect on it."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Callable
from typing import Any

from pexpect import EOF, TIMEOUT
from pexpect.spawnbase import SpawnBase

_AGAIN_S = 0.01
_TAIL_SIZE = 64 << 10


class Log:
    """The log *path* of a VM, from its beginning, and when the VM has taken it away too. Not for several threads."""

    def __init__(self, path: str, opened: str = "") -> None:
        self._path = path
        self._fd = os.open(opened or path, os.O_RDONLY | os.O_CLOEXEC)

    def again(self) -> Log:
        """The same log, to be read from its beginning."""
        return Log(self._path, f"/proc/self/fd/{self._fd}")

    def read(self, size: int) -> bytes:
        """The next bytes, up to *size* of them; none if there are no more yet."""
        data = os.read(self._fd, size)
        if data or (following := self._following()) is None:
            return data
        # Once there is another file, nothing comes to this one: but something may have since the last look.
        if data := os.read(self._fd, size):
            os.close(following)
            return data
        self._go_on(following)
        return os.read(self._fd, size)

    def tail(self, lines: int) -> list[str]:
        """The last *lines*, of the last 64 KiB."""
        if (following := self._following()) is not None:
            self._go_on(following)
        data = os.pread(self._fd, _TAIL_SIZE, max(0, os.fstat(self._fd).st_size - _TAIL_SIZE))
        text = data.decode(errors="replace").replace("\r", "")
        return [line for line in text.split("\n") if line][-lines:]

    def close(self) -> None:
        """Read no more."""
        os.close(self._fd)

    def _following(self) -> int | None:
        """The next file, if the VM has begun one."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.path.sameopenfile(fd, self._fd):
            os.close(fd)
            return None
        return fd

    def _go_on(self, following: int) -> None:
        os.dup2(following, self._fd, inheritable=False)
        os.close(following)


class Console(SpawnBase):  # type: ignore[type-arg]  # generic in its stubs alone
    """`expect`, `expect_exact`, `send`, `sendline` and the rest of pexpect, on the console of a VM.

    It begins with the first thing that the guest printed, however late it is read, unless 8 MiB have followed that. Not
    for several threads.

    *type_text* types, in a given time. *has_ended* tells whether the VM has, and *ended* what is raised then, but to
    who expects `pexpect.EOF`.
    """

    def __init__(
        self,
        log: Log,
        type_text: Callable[[str, float], None],
        has_ended: Callable[[], bool],
        ended: Callable[[], Exception],
        timeout: float,
    ) -> None:
        super().__init__(timeout=timeout, encoding="utf-8", codec_errors="replace")
        self.closed = False
        self._type, self._has_ended, self._ended = type_text, has_ended, ended
        self._output = log
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> str:
        """Up to *size* bytes of what the guest has printed, when there are some.

        Raises:
            pexpect.TIMEOUT, pexpect.EOF: there are none in time; the VM has ended.
        """
        limit = self.timeout if timeout == -1 else timeout
        deadline = None if limit is None else time.monotonic() + limit
        while True:
            ended = self._has_ended()  # before the last look
            data = self._output.read(size)
            if data:
                text = self._decode(data)
                self._log(text, "read")  # type: ignore[attr-defined]
                return text
            if ended:
                self.flag_eof = True
                raise EOF("the VM has ended")
            if deadline is not None and time.monotonic() >= deadline:
                raise TIMEOUT("the guest has not printed it in time")
            time.sleep(_AGAIN_S)

    def expect_list(self, *args: Any, **kwargs: Any) -> Any:
        """As pexpect's; see the class."""
        try:
            return super().expect_list(*args, **kwargs)
        except EOF:
            raise self._ended() from None

    def expect_exact(self, *args: Any, **kwargs: Any) -> Any:
        """As pexpect's; see the class."""
        try:
            return super().expect_exact(*args, **kwargs)
        except EOF:
            raise self._ended() from None

    def send(self, s: str | bytes) -> int:
        """Type *s*; how many bytes that was."""
        text = s if isinstance(s, str) else s.decode()
        self._log(text, "send")  # type: ignore[attr-defined]
        self._type(text, self.timeout or 0)
        return len(text.encode())

    def sendline(self, s: str | bytes = "") -> int:
        """Type *s* and Enter."""
        return self.send(s) + self.send("\n")

    def isalive(self) -> bool:
        """Whether the VM has not ended."""
        return not self._has_ended()

    def close(self) -> None:
        """Read no more."""
        if not self.closed:
            self._output.close()
            self.closed = True
