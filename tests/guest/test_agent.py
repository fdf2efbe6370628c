"""The agent in a guest, through virtio-vsock: commands with streams and status, files, the clock, random numbers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.fakes.host import PYVMM
from tests.guest.booted import Booted
from tests.guest.conftest import Start
from tests.guest.linux import BOOT_S, MIB, Image
from vmm.agent.client import DISCARD, Agent, AgentError, AgentLost, AgentRefused, AgentTimeout

pytestmark = pytest.mark.guest


#: What moves data both ways does so on PCI too.
_ON_BOTH = pytest.mark.parametrize("path", ["mmio", "pci"], indirect=True)


@pytest.fixture(scope="module", params=["mmio", pytest.param("pci", marks=pytest.mark.slow)])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The Unix socket of a guest."""
    path = os.path.join(tmp_path_factory.mktemp("agent"), "vsock")
    booted: Booted = request.getfixturevalue("large" if request.param == "pci" else "small")
    machine = subprocess.Popen([PYVMM, *booted.arguments("--serial", "quiet", "--vsock", path)])
    try:
        while not os.path.exists(path):
            assert machine.poll() is None
            time.sleep(0.05)
        yield path
    finally:
        machine.terminate()
        machine.wait(30)


@pytest.fixture
def agent(path: str) -> Iterator[Agent]:
    with contextlib.closing(Agent(path)) as made:
        yield made


@_ON_BOTH
def test_the_agent_repeats_a_new_nonce_each_time(agent: Agent) -> None:
    for _ in range(3):
        agent.hello(timeout_s=20)


def test_a_command_has_its_arguments_environment_directory_and_streams(agent: Agent) -> None:
    script = 'read line; echo "$0|$1|$VERDICT|$PWD|$line"; echo to stderr >&2'
    done = agent.run(
        ["sh", "-c", script, "zero", "a b"], env={"VERDICT": "ü ="}, cwd="/tmp", stdin=b"typed\nmore\n", timeout_s=60
    )
    assert done.returncode == 0
    assert done.stdout.decode() == "zero|a b|ü =|/tmp|typed\n"
    assert done.stderr == b"to stderr\n"


def test_the_exit_status_and_the_signal_that_ended_a_command_are_told_apart(agent: Agent) -> None:
    assert agent.run(["sh", "-c", "exit 137"], timeout_s=60).returncode == 137
    assert agent.run(["sh", "-c", "kill -9 $$"], timeout_s=60).returncode == -signal.SIGKILL


def test_stdin_ends_and_is_empty_where_none_is_given(agent: Agent) -> None:
    assert agent.run(["wc", "-c"], stdin=bytes(200_000), timeout_s=60).stdout.strip() == b"200000"
    assert agent.run(["wc", "-c"], timeout_s=60).stdout.strip() == b"0"


def test_a_command_that_reads_nothing_does_not_hang_on_its_stdin(agent: Agent) -> None:
    assert agent.run(["true"], stdin=bytes(MIB), timeout_s=60).returncode == 0


def test_streams_pass_through_descriptors_as_they_come(agent: Agent) -> None:
    (read_in, write_in), (read_out, write_out) = os.pipe(), os.pipe()
    running = threading.Thread(target=agent.run, args=(["cat"],), kwargs={"stdin": read_in, "stdout": write_out})
    running.start()
    for line in (b"one\n", b"two\n"):
        os.write(write_in, line)
        assert os.read(read_out, 100) == line
    os.close(write_in)
    running.join(30)
    assert not running.is_alive()
    for fd in (read_in, read_out, write_out):
        os.close(fd)


def test_what_cannot_be_run_is_refused_with_the_guest_s_reason(agent: Agent) -> None:
    for command, reason in ((["no-such"], "No such file"), (["/etc/passwd"], "Permission denied")):
        with pytest.raises(AgentRefused, match=reason):
            agent.run(command, timeout_s=60)
    with pytest.raises(AgentRefused, match="No such file"):
        agent.run(["true"], cwd="/nowhere", timeout_s=60)


def test_a_signal_reaches_the_command(agent: Agent) -> None:
    (signals, send), (output, stdout) = os.pipe(), os.pipe()

    def interrupt() -> None:
        assert os.read(output, 100) == b"ready\n"
        os.write(send, bytes([signal.SIGINT]))

    thread = threading.Thread(target=interrupt)
    thread.start()
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 1; done"
    done = agent.run(["sh", "-c", script], signals=signals, stdout=stdout, timeout_s=60)
    thread.join(10)
    assert (done.returncode, os.read(output, 100)) == (5, b"caught\n")
    for fd in (signals, send, output, stdout):
        os.close(fd)


def test_a_command_whose_client_hangs_up_is_killed_with_its_children(agent: Agent) -> None:
    with pytest.raises(AgentTimeout):
        agent.run(["sh", "-c", "sleep 4321 & sleep 4321"], stdout=DISCARD, timeout_s=3)
    deadline = time.monotonic() + 20
    while b"4321" in agent.run(["ps"], timeout_s=60).stdout:
        assert time.monotonic() < deadline


def test_a_background_process_does_not_keep_a_command_from_ending(agent: Agent) -> None:
    began = time.monotonic()
    assert agent.run(["sh", "-c", "sleep 600 & echo started"], timeout_s=60).stdout == b"started\n"
    assert time.monotonic() - began < 30
    agent.run(["killall", "sleep"], timeout_s=60)


def test_a_background_process_that_writes_for_ever_does_not_keep_a_command_from_ending(agent: Agent) -> None:
    script = "yes & sleep 1; head -c 60000 /dev/zero >&2; exit 5"
    done = agent.run(["sh", "-c", script], stdout=DISCARD, timeout_s=60)
    assert (done.returncode, len(done.stderr)) == (5, 60_000)


@_ON_BOTH
def test_several_at_once_do_not_disturb_each_other(agent: Agent) -> None:
    results: dict[int, bytes] = {}

    def run(number: int) -> None:
        data = bytes([number]) * 50_000
        results[number] = agent.run(["cat"], stdin=data, timeout_s=120).stdout
        assert results[number] == data

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(results) == list(range(8))


def test_a_mebibyte_is_put_and_got_unchanged(agent: Agent) -> None:
    data = hashlib.shake_128(b"file").digest(MIB)
    agent.put(io.BytesIO(data), "/tmp/file", 0o640, timeout_s=120)
    printed = agent.run(["sha256sum", "/tmp/file"], timeout_s=60).stdout
    assert printed.split()[0].decode() == hashlib.sha256(data).hexdigest()
    back = io.BytesIO()
    assert agent.get("/tmp/file", back, timeout_s=120) == 0o640
    assert back.getvalue() == data


def test_a_file_that_is_put_halfway_does_not_appear(agent: Agent) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise OSError("unplugged")
            return super().read(size)

    with pytest.raises(OSError, match="unplugged"):
        agent.put(Broken(bytes(100_000)), "/tmp/half", timeout_s=60)
    assert agent.run(["sh", "-c", "ls /tmp/half* | wc -l"], timeout_s=60).stdout.strip() == b"0"


def test_files_that_cannot_be_are_refused(agent: Agent) -> None:
    with pytest.raises(AgentRefused, match="No such file"):
        agent.put(io.BytesIO(b"x"), "/nowhere/file", timeout_s=60)
    with pytest.raises(AgentRefused, match="No such file"):
        agent.get("/nowhere", io.BytesIO(), timeout_s=60)
    with pytest.raises(AgentRefused, match="Is a directory"):
        agent.get("/etc", io.BytesIO(), timeout_s=60)


def test_a_file_larger_than_wanted_is_not_taken(agent: Agent) -> None:
    target = io.BytesIO()
    with pytest.raises(AgentError, match="more than 1000 bytes"):
        agent.get("/dev/zero", target, size_max=1000, timeout_s=60)
    assert len(target.getvalue()) == 1000


@pytest.mark.parametrize("path", ["pci"], indirect=True)  # which has something to sync
def test_others_do_not_wait_for_a_sync(agent: Agent) -> None:
    agent.run(["dd", "if=/dev/zero", "of=/tmp/dirty", "bs=64k", "count=16"], timeout_s=60)
    syncing = threading.Thread(target=agent.sync)
    syncing.start()
    time.sleep(0.02)  # it is asked first
    agent.hello(timeout_s=20)
    assert syncing.is_alive()
    syncing.join(60)
    assert not syncing.is_alive()


def test_the_clock_is_set(agent: Agent) -> None:
    agent.set_time(1_000_000_000 * 10**9)
    assert 0 <= int(agent.run(["date", "+%s"], timeout_s=60).stdout) - 1_000_000_000 < 30
    agent.set_time()
    assert abs(int(agent.run(["date", "+%s"], timeout_s=60).stdout) - time.time()) < 30


def test_the_random_numbers_are_reseeded(agent: Agent) -> None:
    agent.reseed()
    with pytest.raises(AgentRefused, match="Invalid"):
        agent.reseed(bytes(513))


def test_a_restored_guest_is_renewed_at_once(agent: Agent) -> None:
    agent.set_time(1_000_000_000 * 10**9)
    agent.renew()
    assert abs(int(agent.run(["date", "+%s"], timeout_s=60).stdout) - time.time()) < 30


def test_nonsense_ends_its_connection_and_no_other(agent: Agent, path: str) -> None:
    for nonsense in (b"\xff" * 100, b"\x00\x00\x00\x00\x63\x00\x00\x00", b"GET / HTTP/1.0\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(path)
            client.sendall(b"CONNECT 1023\n")
            assert client.recv(100).startswith(b"OK ")
            client.sendall(nonsense)
            assert client.recv(100) == b""
    agent.hello()


def test_a_port_where_nobody_listens_is_refused_at_once(path: str) -> None:
    with pytest.raises(AgentTimeout, match=r"no agent answers"):
        Agent(path, port=9999, patience_s=2).hello()


def test_exec_boots_runs_and_ends_with_the_command_s_status(micro: Image) -> None:
    command = "echo out; echo err >&2; exit 3"
    done = subprocess.run(
        [PYVMM, "--kernel", micro.kernel(), "--initrd", micro.initrd, "--memory", "128M", "--exec", command],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=BOOT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, b"out\n"), done.stderr
    assert done.stderr.endswith(b"err\n")


@pytest.mark.parametrize(("last", "code"), [("exit 9", 9), ("kill -9 $$", 137)])
def test_pyvmm_exec_passes_streams_and_status(path: str, last: str, code: int) -> None:
    command = [sys.executable, "-m", "vmm", "exec", path, "-i", "--", "sh", "-c", f"cat; echo bad >&2; {last}"]
    done = subprocess.run(command, input=b"through\n", capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"through\n", b"bad\n")


def test_the_agent_answers_in_every_life_of_its_guest(
    no_others: str, small: Booted, start: Start, tmp_path: os.PathLike[str]
) -> None:
    snapshot = os.path.join(tmp_path, "snapshot")
    start(*small.arguments("--name", "first"))
    while not os.path.exists(path := os.path.join(no_others, "first", "vsock.sock")):
        time.sleep(0.05)
    agent = Agent(path, patience_s=BOOT_S)
    agent.hello(timeout_s=BOOT_S)
    output, stdout = os.pipe()
    lost: list[AgentLost] = []

    def wait() -> None:
        try:
            agent.run(["sh", "-c", "echo ready; sleep 4321"], stdout=stdout)
        except AgentLost as error:
            lost.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert os.read(output, 100) == b"ready\n"
    subprocess.run([PYVMM, "snapshot", "first", snapshot], check=True, timeout=60)
    agent.hello(timeout_s=60)
    subprocess.run([PYVMM, "kill", "first"], check=True, timeout=60)
    waiting.join(20)
    assert lost, "its end was not told"

    start("restore", snapshot, "--name", "again")
    while not os.path.exists(path := os.path.join(no_others, "again", "vsock.sock")):
        time.sleep(0.05)
    again = Agent(path, patience_s=BOOT_S)
    again.hello(timeout_s=60)
    again.renew(timeout_s=60)
    deadline = time.monotonic() + 20
    while b"4321" in again.run(["ps"], timeout_s=60).stdout:  # a command goes with its connection
        assert time.monotonic() < deadline
    again.run(["touch", "/dev/of-this-life"], timeout_s=60)
    with contextlib.suppress(AgentLost):
        again.run(["reboot"], timeout_s=60)
    deadline = time.monotonic() + BOOT_S
    while True:
        with contextlib.suppress(AgentLost):
            if again.run(["sh", "-c", "test -e /dev/of-this-life"], timeout_s=BOOT_S).returncode:
                break
        assert time.monotonic() < deadline
    os.close(output)
    os.close(stdout)


def test_stop_has_the_agent_power_the_guest_off(no_others: str, small: Booted, start: Start) -> None:
    guest = start(*small.arguments("--name", "one"))
    guest.ask_for_prompt()
    done = subprocess.run([PYVMM, "stop", "one"], capture_output=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert guest.finish() == 0
    assert os.listdir(no_others) == []


@pytest.mark.slow
def test_debian_s_kernel_has_its_agent_too(debian: Image) -> None:
    done = subprocess.run(
        [PYVMM, "-k", debian.kernel(), "-i", debian.initrd, "-m", "512M", "-a", "quiet", "--exec", "uname -r; exit 7"],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=600, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.decode().strip()) == (7, debian.manifest["kernel_release"]), done.stderr
