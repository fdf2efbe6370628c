"""Fixtures of the network tests: each runs in a namespace of its own."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest

from tests.waiting import until
from vmm.host.net.create import create_nat
from vmm.host.net.network import Nat
from vmm.host.net.store import Store

from . import helper, managed
from .namespace import ip, links, network_namespace, open_fds


@pytest.fixture
def netns() -> Iterator[None]:
    """The test runs in a new network namespace."""
    with network_namespace():
        yield


@pytest.fixture
def bridge(netns: None) -> str:
    """A bridge that is up, without ports; the host's address on it is 10.0.0.1."""
    return _add_bridge()


@pytest.fixture
def tap_name(netns: None) -> str:
    """A persistent tap that is up; the host's address on it is 10.0.0.1, and it says nothing of its own accord."""
    return _add_tap()


@pytest.fixture
def multi_queue(netns: None) -> str:
    """As `tap_name`, but a tap that may have several queues."""
    return _add_tap("multi_queue")


@pytest.fixture
def nothing_left(netns: None) -> Iterator[None]:
    """No device and no descriptor is more at the test's end than at its start. Ask for it last."""
    before = links(), open_fds()
    yield
    assert (links(), open_fds()) == before


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[managed.Host]:
    """A host with an uplink, whose networks are known in a directory of the test's; they end with the test."""
    with tempfile.TemporaryDirectory(prefix="pyvmm-net-") as directory, managed.host(directory) as made:
        monkeypatch.setenv("PYVMM_STATE", made.directory)
        monkeypatch.setenv("PYVMM_HOSTS", made.hosts)
        yield made
        for pid in managed.servers(made):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def store(host: managed.Host) -> Store:
    """What pyvmm knows of the host's networks."""
    return Store()


@pytest.fixture
def host_bridge(host: managed.Host) -> str:
    """A bridge of the *host*'s own, as `bridge`."""
    return _add_bridge()


@pytest.fixture
def network(store: Store) -> Nat:
    """The network lab."""
    return create_nat(store, "lab")


@pytest.fixture
def service(host: managed.Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[helper.Service]:
    """The network helper; all that it does for somebody has ended at the end."""
    running = helper.Service(host.directory)
    monkeypatch.setenv("PYVMM_NET_HELPER", running.socket)
    try:
        yield running
        until(lambda: not running.children())
        assert "Traceback" not in running.said()
    finally:
        running.end()


def _add_tap(options: str = "") -> str:
    ip(f"tuntap add dev tap0 mode tap {options}")
    ip("link set tap0 addrgenmode none")
    ip("address add 10.0.0.1/24 dev tap0")
    ip("link set tap0 up")
    return "tap0"


def _add_bridge() -> str:
    ip("link add br0 type bridge")
    ip("address add 10.0.0.1/24 dev br0")
    ip("link set br0 up")
    return "br0"
