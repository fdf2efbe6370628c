"""Clones of a booted Linux: what each does to its disks, its memory and its network is its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.fakes.host import PYVMM
from tests.guest.booted import DISK_SIZE, PROBE, Booted
from tests.guest.linux import BOOT_S, Image
from vmm.agent.client import Agent
from vmm.api.client import Client

pytestmark = pytest.mark.guest

_ASK_S = 60.0


def run(agent: Agent, command: str) -> str:
    """What *command* prints in the guest."""
    done = agent.run(["sh", "-c", command], timeout_s=_ASK_S)
    assert done.returncode == 0, done
    return done.stdout.decode().strip()


def clone(*arguments: str) -> list[str]:
    done = subprocess.run([PYVMM, "clone", *arguments], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def agent_of(name: str) -> Agent:
    with Client(name) as client:
        return Agent(client.request("status")["vsock"], patience_s=BOOT_S)


@pytest.fixture(scope="module")
def original(micro: Image, small: Booted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running guest with a disk at /mnt, which is thrown away at the end, on a lan."""
    disk = micro.copy_root(os.path.join(tmp_path_factory.mktemp("clone"), "disk.img"))
    os.truncate(disk, DISK_SIZE)
    arguments = small.arguments(
        "--disk", f"{disk},snapshot=on", "--disk", f"{small.disk},readonly", "--serial", "quiet", "--name", "original",
        net="lan=clones,name=first",
    )  # fmt: skip
    machine = subprocess.Popen([PYVMM, *arguments])
    try:
        path = os.path.join(os.environ["PYVMM_RUN"], "original", "vsock.sock")
        while not os.path.exists(path):
            assert machine.poll() is None
            time.sleep(0.05)
        run(Agent(path, patience_s=_ASK_S), f"{PROBE}; mount /dev/vda /mnt")
        yield "original"
    finally:
        machine.terminate()
        machine.wait(30)


@pytest.fixture
def clones(original: str) -> Iterator[list[str]]:
    run(agent_of(original), "echo before >/mnt/before; sync; ip link set eth0 up")
    names = clone(original, "--count", "3")
    yield names
    subprocess.run([PYVMM, "kill", *names], check=True, timeout=60)


def test_each_is_a_machine_of_its_own(original: str, clones: list[str]) -> None:
    agents = [agent_of(name) for name in clones]
    for name, agent in zip(clones, agents, strict=True):
        assert run(agent, "cat /mnt/before") == "before"
        run(agent, f"echo {name} >/mnt/own; dd if=/dev/urandom of=/mnt/big bs=4k count=4; sync")
        run(agent, "echo 3 >/proc/sys/vm/drop_caches")
    for name, agent in zip(clones, agents, strict=True):
        assert run(agent, "cat /mnt/own") == name
        assert abs(int(run(agent, "date +%s")) - time.time()) < 5
    assert len({run(agent, "sha256sum </mnt/big") for agent in agents}) == len(clones)
    assert len({run(agent, "head -c 16 /dev/urandom | sha256sum") for agent in agents}) == len(clones)
    addresses = {run(agent, "cat /sys/class/net/eth0/address") for agent in [agent_of(original), *agents]}
    assert len(addresses) == len(clones) + 1
    assert run(agent_of(original), "ls /mnt/own || echo none").endswith("none")


def test_clones_of_clones_have_what_these_had(clones: list[str]) -> None:
    run(agent_of(clones[0]), "echo first >/mnt/own; sync")
    (name,) = clone(clones[0], "--name", "grandchild")
    assert run(agent_of(name), "cat /mnt/own /mnt/before").split() == ["first", "before"]
    subprocess.run([PYVMM, "kill", name], check=True, timeout=60)


def test_random_numbers_differ_without_the_agent_s_help(original: str, tmp_path: os.PathLike[str]) -> None:
    """The kernel hears of its new generation id from ACPI."""
    path, found = os.path.join(tmp_path, "snapshot"), set()
    subprocess.run([PYVMM, "snapshot", original, path], check=True, timeout=60)
    for name in ("one", "other"):
        subprocess.run(
            [PYVMM, "restore", path, "--name", name, "--detach", "--net", f"lan={name}"], check=True, timeout=60
        )
        found.add(run(agent_of(name), "head -c 16 /dev/urandom | sha256sum"))
        assert run(agent_of(name), "ls /sys/bus/acpi/drivers/vmgenid").split()[0].startswith("PYVM0001")
        subprocess.run([PYVMM, "kill", name], check=True, timeout=60)
    assert len(found) == 2


def test_no_time_has_passed_for_a_clone_but_for_the_time_of_day(original: str, tmp_path: os.PathLike[str]) -> None:
    path, slept_s = os.path.join(tmp_path, "snapshot"), 10
    subprocess.run([PYVMM, "snapshot", original, path], check=True, timeout=60)
    time.sleep(slept_s)
    clone(path, "--name", "stood")
    subprocess.run(
        [PYVMM, "restore", path, "--name", "slept", "--detach", "--net", "lan=slept"], check=True, timeout=60
    )
    uptimes = {name: float(run(agent_of(name), "cat /proc/uptime").split()[0]) for name in ("stood", original, "slept")}
    for name in ("stood", "slept"):
        assert abs(int(run(agent_of(name), "date +%s")) - time.time()) < 5
    subprocess.run([PYVMM, "kill", "stood", "slept"], check=True, timeout=60)
    assert uptimes["stood"] < uptimes[original] - slept_s / 2
    assert uptimes["slept"] >= uptimes[original]
