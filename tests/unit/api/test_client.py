"""The client's end of the control socket: what it asks and what it makes of answers, late ones and none."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fakes.vm import Vm
from vmm.api import place
from vmm.api.client import Client, NoAnswer, NoSuchVm, wait_until_gone
from vmm.errors import ConfigError, HostError


def test_by_name_and_by_path(vm: Vm) -> None:
    for where in ("web1", vm.path("control.sock")):
        with Client(where) as client:
            assert client.name == "web1"
            assert client.request("status")["state"] == "running"


def test_refusals_are_errors_of_their_kind(vm: Vm) -> None:
    with Client("web1") as client:
        with pytest.raises(ConfigError, match="VM web1: 'dance' is no request"):
            client.request("dance")
        with pytest.raises(ConfigError, match="text: is missing"):
            client.request("type")
        vm.session.leave()
        vm.server.ended.set()
        with pytest.raises(HostError, match="VM web1"):
            client.request("pause")


def test_an_answer_that_does_not_come(vm: Vm) -> None:
    vm.machine.may_pause.clear()
    with Client("web1") as client:
        with pytest.raises(NoAnswer, match="VM web1: does not answer in time"):
            client.request("pause", wait_s=0.1)
        vm.machine.may_pause.set()
        assert client.request("status")["name"] == "web1"  # and not the late answer to the other


def test_events_until_the_end(vm: Vm) -> None:
    with Client("web1") as client:
        events = client.events(timeout_s=10)
        threading.Timer(0.05, vm.session.tell, ["paused"]).start()
        threading.Timer(0.1, vm.session.tell, ["ended"], {"outcome": "reset"}).start()
        assert list(events) == [{"event": "paused"}, {"event": "ended", "outcome": "reset"}]


def test_nothing_happens(vm: Vm) -> None:
    with Client("web1") as client, pytest.raises(NoAnswer):
        next(client.events(timeout_s=0.05))


def test_no_such_vm(vm: Vm) -> None:
    with pytest.raises(NoSuchVm, match="web2: no such VM is running\n  running: web1"):
        Client("web2")


def test_no_vm_at_all(run: str) -> None:
    with pytest.raises(NoSuchVm, match="web2: no such VM is running\n  running: none"):
        Client("web2")


def test_a_vm_that_is_about_to_listen_is_waited_for(run: str) -> None:
    mine = place.claim("web1")
    with pytest.raises(NoAnswer, match="VM web1: does not listen"):
        Client("web1", timeout_s=0.1)
    threading.Timer(0.1, mine.release).start()
    assert wait_until_gone("web1", 10)


def test_one_that_stays_is_waited_for_no_longer(vm: Vm) -> None:
    assert not wait_until_gone("web1", 0.05)


@contextmanager
def impostor(run: str, said: bytes) -> Iterator[str]:
    """A socket that says *said* to the first who comes, and hangs up."""
    path = os.path.join(run, "control.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as channel:
                channel.sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        yield path
        thread.join()
    os.unlink(path)


@pytest.mark.parametrize("said", [b"", b"pyvmm", b"[]\n"])
def test_what_is_no_vm(run: str, said: bytes) -> None:
    with impostor(run, said) as path, pytest.raises(NoAnswer, match="has ended"):
        Client(path)


def test_another_protocol(run: str) -> None:
    greeting = json.dumps({"pyvmm": "9.9", "protocol": 2, "name": "x"}).encode() + b"\n"
    with impostor(run, greeting) as path, pytest.raises(HostError, match=r"is of pyvmm 9\.9, which speaks otherwise"):
        Client(path)
