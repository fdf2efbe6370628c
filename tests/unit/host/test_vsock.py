"""The Unix socket behind a guest's sockets. What goes through it: tests/unit/virtio/test_vsock."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time

import pytest

from vmm.errors import BackendError
from vmm.host import vsock
from vmm.host.vsock import PATH_MAX, VsockGate


@pytest.fixture
def path(tmp_path: os.PathLike[str]) -> str:
    return os.path.join(tmp_path, "vsock")


def test_it_is_its_owner_s_alone_and_gone_afterwards(path: str) -> None:
    gate = VsockGate(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    gate.close()
    assert not os.path.exists(path)


def test_it_may_be_gone_before_it_is_closed(path: str) -> None:
    gate = VsockGate(path)
    os.unlink(path)
    gate.close()


def test_a_socket_that_nobody_listens_at_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    VsockGate(path).close()


def test_a_socket_in_use_is_refused(path: str) -> None:
    gate = VsockGate(path)
    with pytest.raises(BackendError, match="is in use"):
        VsockGate(path)
    gate.close()


def test_of_two_that_find_the_same_stale_socket_one_gets_the_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)

    def slowly(path: str) -> bool:
        found = is_stale(path)
        time.sleep(0.2)  # for the other to find it too
        return found

    is_stale = vsock._is_stale
    monkeypatch.setattr(vsock, "_is_stale", slowly)
    gates: list[VsockGate] = []
    refused: list[BackendError] = []

    def start() -> None:
        try:
            gates.append(VsockGate(path))
        except BackendError as error:
            refused.append(error)

    threads = [threading.Thread(target=start) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for gate in gates:
        gate.close()
    assert (len(gates), [error.what for error in refused]) == (1, [f"{path} is in use"])


def test_what_another_has_at_its_path_by_then_is_left_alone(path: str) -> None:
    gate = VsockGate(path)
    os.unlink(path)
    other = VsockGate(path)
    gate.close()
    assert os.path.exists(path)
    other.close()


def test_a_file_that_is_no_socket_is_left_alone(path: str) -> None:
    with open(path, "w") as file:
        file.write("precious")
    with pytest.raises(BackendError, match="is in use"):
        VsockGate(path)
    assert os.path.getsize(path) == 8


def test_a_path_that_is_too_long_is_refused_with_the_limit(path: str) -> None:
    with pytest.raises(BackendError, match=str(PATH_MAX)):
        VsockGate(path + "x" * PATH_MAX)


def test_a_directory_that_is_not_there_is_told(path: str) -> None:
    with pytest.raises(BackendError, match="No such file"):
        VsockGate(f"{path}/none")
