"""`pyvmm-net-helper` for the tests: the service, and users who ask it."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import closing

from tests.waiting import until
from vmm.config import NetConfig
from vmm.host.net.join import join
from vmm.host.net_helper import units
from vmm.host.tap import Tap

from .namespace import as_user, await_carrier

HELPER = os.path.join(os.path.dirname(sys.executable), "pyvmm-net-helper")
CAPABILITIES = re.findall(r"\bCAP_(\w+)", units._SCRIPT)
AS_SYSTEMD = ("setpriv", "--no-new-privs", f"--bounding-set=-all,+{',+'.join(CAPABILITIES).lower()}")
ANN, BOB = 65534, 1  # nobody and daemon, whom every host has

ALLOW = """\
[[allow]]
users = ["nobody"]
networks = ["lab", "br0"]

[[allow]]
groups = ["daemon"]
networks = ["lab"]
"""


class Service:
    """A helper by `--listen`, under the limits of its unit."""

    def __init__(self, directory: str) -> None:
        self.socket, self.allow_list, self._log = (
            os.path.join(directory, name) for name in ("run/socket", "net.toml", "log")
        )
        with open(self.allow_list, "w") as file:
            file.write(ALLOW)
        os.chmod(self.allow_list, 0o644)
        self.start()

    def start(self) -> None:
        command = [*AS_SYSTEMD, HELPER, "--listen", self.socket, "--allow-list", self.allow_list]
        with open(self._log, "a") as log:
            self.process = subprocess.Popen(command, stderr=log)
        try:
            until(self._answers)
            until(lambda: not self.children())
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self.process.terminate()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            return "networks" in self.answer(b'{"version": 1}')
        except OSError:
            return False

    def children(self) -> list[int]:
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as file:
            return [int(pid) for pid in file.read().split()]

    def said(self) -> str:
        with open(self._log) as file:
            return file.read()

    def connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(15)
        try:
            connection.connect(self.socket)
        except OSError:
            connection.close()
            raise
        return connection

    def answer(self, request: bytes) -> dict[str, object]:
        """What it answers to *request*, of any content."""
        with self.connect() as connection:
            connection.send(request)
            answer: dict[str, object] = json.loads(connection.recv(65536))
            return answer


def joined(net: NetConfig, uid: int = ANN) -> closing[Tap]:
    """What `--net` does for the user *uid*: the tap, once frames pass."""
    with as_user(uid):
        tap, _ = join(net)
    if not net.private:
        await_carrier(net.network or net.bridge)
    return closing(tap)
