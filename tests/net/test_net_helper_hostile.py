"""`pyvmm-net-helper`: whoever asks for whatever, and however it was started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.fakes.host import NOBODY
from tests.net.managed import Host, state
from tests.waiting import until
from vmm.config import NetConfig
from vmm.errors import BackendError
from vmm.host.net import guests
from vmm.host.net.network import Nat
from vmm.host.net.store import Store
from vmm.host.net_helper.client import Helper, ask_networks
from vmm.host.net_helper.service import CONNECTIONS_MAX

from .helper import ANN, BOB, HELPER, Service, joined
from .namespace import as_user, links

pytestmark = [pytest.mark.net, pytest.mark.root]


@pytest.mark.parametrize(
    "request_",
    [
        b"\0",
        b"x" * 100_000,
        b'{"version": 1, "bridge": "br0"',
        b'{"version": 1, "bridge": 7}',
        b'{"version": 1, "bridge": "br0", "queues": 100000}',
        b'{"version": 1, "bridge": "br0", "mtu": -1}',
        b'{"version": 1, "bridge": "../../x"}',
        b'{"version": 1, "network": "../lab"}',
        b'{"version": 1, "network": "lab", "name": "../../x"}',
        b'{"version": 1, "network": "lab", "name": "a/b", "private": true}',
        b'{"version": 1, "tap": "tap0"}',
        b"[" * 1000,
    ],
)
def test_hostile_requests(host: Host, store: Store, network: Nat, service: Service, request_: bytes) -> None:
    before = state(host)
    with as_user(ANN):
        assert "error" in service.answer(request_)
        assert "networks" in service.answer(b'{"version": 1}')
    until(lambda: not service.children())
    assert state(host) == before
    assert guests.read_guests(store, "lab") == {}


def test_descriptors_that_come_with_a_request_are_lost(service: Service) -> None:
    with as_user(ANN), service.connect() as connection, open(os.devnull) as null:
        socket.send_fds(connection, [b'{"version": 1}'], [null.fileno()] * 200)
        assert b"networks" in connection.recv(65536)


def test_who_says_nothing_is_waited_for_alone(network: Nat, service: Service) -> None:
    with as_user(ANN):
        silent = [service.connect() for _ in range(8)]
    with joined(NetConfig(network="lab")):
        pass
    for connection in silent:
        connection.close()


def test_one_users_connections_are_no_others_business(network: Nat, service: Service) -> None:
    with contextlib.ExitStack() as stack:
        with as_user(ANN):
            for _ in range(CONNECTIONS_MAX):
                stack.enter_context(service.connect())
            with pytest.raises(BackendError, match=f"you have {CONNECTIONS_MAX} taps already"):
                ask_networks(Helper(service.socket))
        with joined(NetConfig(network="lab"), BOB):
            pass


def test_who_is_gone_before_the_answer(network: Nat, service: Service) -> None:
    before = links()
    with as_user(ANN):
        for _ in range(5):
            with service.connect() as connection:
                connection.send(b'{"version": 1, "network": "lab"}')
    until(lambda: not service.children())
    assert links() == before


# The other ways to start it.


#: Runs the command that is its arguments, with a descriptor, as systemd would.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.execve(sys.argv[2], sys.argv[2:], {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})
"""


def test_a_socket_of_systemds(host: Host, network: Nat, service: Service) -> None:
    path = os.path.join(host.directory, "activated")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(path)
        os.chmod(path, 0o666)
        server.listen()
        command = [sys.executable, "-c", ACTIVATE, str(server.fileno()), HELPER, "--allow-list", service.allow_list]
        process = subprocess.Popen(command, pass_fds=[server.fileno()], stderr=subprocess.DEVNULL)
    try:
        with as_user(ANN):
            assert set(ask_networks(Helper(path))) == {"lab", "br0"}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def by_sudo(user: int, sudo_uid: str, allow_list: str, request: bytes) -> tuple[bytes, str]:
    """What the helper answers when sudo has started it for the user *sudo_uid* with a socket of *user*, and says."""
    with as_user(user):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [HELPER, "--allow-list", allow_list],
                stdin=theirs.fileno(), stderr=subprocess.PIPE, env={**os.environ, "SUDO_UID": sudo_uid}, text=True,
            )  # fmt: skip
        ours.settimeout(10)
        try:
            ours.send(request)
            answer = ours.recv(65536)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    return answer, process.communicate(timeout=10)[1]


def test_sudo_hands_over_the_connection(host_bridge: str, service: Service) -> None:
    answer, said = by_sudo(ANN, str(ANN), service.allow_list, b'{"version": 1, "bridge": "br0"}')
    assert json.loads(answer)["tap"] == "pyvmm0"
    assert said == ""
    until(lambda: "pyvmm0" not in links())


def test_a_connection_that_is_not_the_callers(host_bridge: str, service: Service) -> None:
    answer, said = by_sudo(ANN, str(BOB), service.allow_list, b'{"version": 1, "bridge": "br0"}')
    assert answer == b""
    assert said == ("pyvmm-net-helper: standard input is a socket of user nobody, for whom sudo has not started this\n")


def test_the_second_service_on_a_socket(service: Service) -> None:
    done = subprocess.run([HELPER, "--listen", service.socket], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        125,
        f"pyvmm-net-helper: {service.socket}: another helper serves it\n",
    )


def test_without_the_right_it_serves_nobody(host: Host) -> None:
    path = f"/tmp/pyvmm-helper-{os.getpid()}"
    done = subprocess.run([*NOBODY, HELPER, "--listen", path], capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert done.stderr == "pyvmm-net-helper: this is nobody: it needs CAP_NET_ADMIN\n  run it as root\n"
    assert not os.path.exists(path)
