"""An ordinary user's VM asks the helper for a tap: a root service, by its socket, or a program that sudo lets them run.

`$PYVMM_NET_HELPER` is the path of another socket.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError
from vmm.host.net_helper.allow import ALLOW_LIST
from vmm.host.net_helper.wire import raise_refusal, receive_answer, request
from vmm.host.tap import Tap
from vmm.mac import parse_mac

if TYPE_CHECKING:
    from vmm.config import NetConfig

SOCKET = "/run/pyvmm/net-helper.sock"
PROGRAM = "pyvmm-net-helper"
#: What to do where there is no helper.
SET_UP = f"run: {PROGRAM} --print-units | sudo sh\nand say in {ALLOW_LIST} who may join which network"
_ANSWER_S = 30.0
_SUDO = ["sudo", "--non-interactive", PROGRAM]
_SUDO_S = 5.0


@dataclass(frozen=True)
class Helper:
    """Where a helper is: at the socket *path*, or without one behind sudo."""

    path: str

    @property
    def where(self) -> str:
        """For messages."""
        return self.path or " ".join(_SUDO)

    @property
    def fix(self) -> str:
        """What to do where it does not answer."""
        if self.path:
            return "run: sudo systemctl restart pyvmm-net-helper.socket"
        return f"run: {PROGRAM} --print-units, which ends with the line that sudo needs"


class HelperTap(Tap):
    """A tap that the helper made, and takes away when *line* ends."""

    __slots__ = ("_line",)

    def __init__(self, fds: list[int], name: str, mtu: int, line: _Line) -> None:
        super().__init__(fds, name, mtu)
        self._line = line

    def close(self) -> None:
        """Let go of the tap, and let the helper know."""
        super().close()
        self._line.close()


class _Line:
    """A connection to *helper*.

    Raises:
        BackendError: there is none.
    """

    def __init__(self, helper: Helper) -> None:
        self._helper = helper
        self._sudo: subprocess.Popen[bytes] | None = None
        try:
            if helper.path:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                self._socket.connect(helper.path)
            else:
                self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with theirs:
                    # In a session of its own, or Ctrl-C would end the helper before it has cleared away.
                    self._sudo = subprocess.Popen(
                        _SUDO,
                        stdin=theirs.fileno(),
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        start_new_session=True,
                    )
        except OSError as error:
            self._socket.close()
            raise self._silence(error.strerror) from error

    def ask(self, net: NetConfig | None) -> tuple[dict[str, Any], list[int]]:
        """What the helper answers to the request for the tap of *net*, and the descriptors.

        Raises:
            ConfigError, BackendError: it refuses, or does not answer.
        """
        self._socket.settimeout(_ANSWER_S)
        fds_max = net.queues if net else 0
        try:
            with suppress(BrokenPipeError):  # it refuses whoever has too many connections without listening
                self._socket.send(request(net))
            try:
                got = receive_answer(self._socket, fds_max)
            except ConnectionResetError:  # the kernel says that first, and then what the helper said before
                got = receive_answer(self._socket, fds_max)
        except OSError as error:
            got, reason = None, error.strerror or "nothing comes"
        else:
            reason = "it ended"
        if got is None:
            raise self._silence(self._last_words() or reason)
        raise_refusal(got[0])
        return got

    def close(self) -> None:
        """End it. After sudo the helper has ended then."""
        self._socket.close()
        self._last_words()

    def _silence(self, reason: str | None) -> BackendError:
        return BackendError(f"the helper does not answer: {reason}", where=self._helper.where, fix=self._helper.fix)

    def _last_words(self) -> str:
        """What sudo, or the helper behind it, said at its end, in one line."""
        self._socket.close()
        sudo, self._sudo = self._sudo, None
        if not sudo:
            return ""
        try:
            said = sudo.communicate(timeout=_SUDO_S)[1].decode(errors="replace").split("\n")
        except subprocess.TimeoutExpired:
            return ""
        return next((line for line in reversed(said) if line[:1].strip()), "")


def find_helper() -> Helper | None:
    """The helper of this host, if it has been set up."""
    path = os.environ.get("PYVMM_NET_HELPER", SOCKET)
    if os.path.exists(path):
        return Helper(path)
    # sudo tells root of who asks in vain: so only where somebody has written an allow-list.
    return Helper("") if os.path.exists(ALLOW_LIST) and shutil.which("sudo") else None


def ask(helper: Helper, net: NetConfig) -> tuple[Tap, bytes | None]:
    """A tap for *net* by *helper*, and the card's address where the network gives it one.

    Raises:
        ConfigError, BackendError: as `vmm.host.net.join`, or the user may not join that network.
    """
    line = _Line(helper)
    try:
        answer, fds = line.ask(net)
        try:
            return HelperTap(fds, answer["tap"], answer["mtu"], line), answer["mac"] and parse_mac(answer["mac"])
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
    except BaseException:
        line.close()
        raise


def ask_networks(helper: Helper) -> dict[str, str]:
    """The networks that this user may join by *helper*, and the line of the allow-list that says so.

    Raises:
        BackendError: the helper does not answer, or its allow-list has a mistake.
    """
    with closing(_Line(helper)) as line:
        networks: dict[str, str] = line.ask(None)[0]["networks"]
        return networks
