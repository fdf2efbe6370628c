"""Joining a lan: its switch process starts with the first port, is the same for all, and ends with the last."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vmm.native._engine", reason="the native engine is not built: pip install -e .")

from tests.fakes.lan import BROADCAST, frame, mac, records
from tests.fakes.lan_guest import LanGuest
from vmm.errors import BackendError, ConfigError
from vmm.host.lan import port as lan_port
from vmm.host.lan.place import lan_directory, socket_path
from vmm.host.lan.port import MTU, open_lan
from vmm.host.net.capture import PCAP_HEADER
from vmm.host.uplink import Uplink

HEADER = bytes(12)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory, in which nothing of a lan is left at the end, nor a switch."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    yield tmp_path
    deadline = time.monotonic() + 5
    while pids := switches(tmp_path):
        assert time.monotonic() < deadline, f"switches are left: {pids}"
        time.sleep(0.01)
    lans = tmp_path / "pyvmm" / "lan"
    assert not lans.exists() or not list(lans.iterdir())


def switches(runtime: Path) -> list[int]:
    """The pids of switch processes whose lans are in *runtime*."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"vmm.host.lan" in (line := file.read()) and os.fsencode(runtime) in line:
                found.append(int(pid))
    return found


def send(port: Uplink, sent: bytes) -> None:
    assert port.writev([memoryview(HEADER), memoryview(sent)])


def receive(port: Uplink) -> bytes:
    buffer = bytearray(1 << 17)
    deadline = time.monotonic() + 5
    while True:
        size = port.readv([memoryview(buffer)])
        if size:
            return bytes(buffer[12:size])
        assert time.monotonic() < deadline, "no frame"
        time.sleep(0.001)


@contextlib.contextmanager
def two_ports() -> Iterator[tuple[Uplink, Uplink]]:
    with contextlib.closing(open_lan("x")) as a, contextlib.closing(open_lan("x")) as b:
        yield a, b


def test_two_ports_are_on_one_switch(runtime: Path) -> None:
    with two_ports() as (a, b):
        assert len(switches(runtime)) == 1
        send(a, frame(BROADCAST, mac(1)))
        assert receive(b) == frame(BROADCAST, mac(1))


def test_lans_of_other_names_are_others(runtime: Path) -> None:
    with two_ports() as (a, b), contextlib.closing(open_lan("y")) as other:
        assert len(switches(runtime)) == 2
        send(a, frame(BROADCAST, mac(1)))
        receive(b)
        assert other.readv([memoryview(bytearray(100))]) == 0


def test_ports_have_names_of_their_own_and_the_mtu() -> None:
    with two_ports() as (a, b), contextlib.closing(open_lan("x", mtu=9000)) as c:
        assert [port.name for port in (a, b, c)] == [f"lan x port {number}" for number in range(3)]
        assert (a.mtu, c.mtu) == (MTU, 9000)


def test_vlans() -> None:
    with (
        contextlib.closing(open_lan("x", vlan=5)) as a,
        contextlib.closing(open_lan("x", vlan=6)) as b,
        contextlib.closing(open_lan("x", vlan=5)) as c,
    ):
        send(a, frame(BROADCAST, mac(1)))
        receive(c)
        assert b.readv([memoryview(bytearray(100))]) == 0


def guest_on(port: Uplink, number: int) -> LanGuest:
    """A guest by its Ethernet address, that asks over *port*."""

    def ask(sent: bytes) -> bytes:
        send(port, sent)
        return receive(port)

    return LanGuest(ask, mac(number))


@pytest.mark.parametrize("vlan", [0, 5])
def test_guests_get_addresses_and_find_each_other(vlan: int) -> None:
    with (
        contextlib.closing(open_lan("x", vlan=vlan, guest=("db", mac(1)))) as a,
        contextlib.closing(open_lan("x", vlan=vlan)) as b,
    ):
        db = guest_on(a, 1)
        address = socket.inet_aton(db.get_address())
        receive(b)
        receive(b)  # what the other one asked went to all
        web = guest_on(b, 2)
        web.get_address()
        assert web.resolve("db") == (0, [address])


def test_a_name_is_one_guests_at_a_time() -> None:
    with contextlib.closing(open_lan("x", guest=("db", mac(1)))), contextlib.closing(open_lan("x")) as other:
        with pytest.raises(BackendError, match=r"^lan x: its guest db runs already"):
            open_lan("x", guest=("db", mac(1)))
        assert other.name == "lan x port 1"
    with contextlib.closing(open_lan("x")), contextlib.closing(open_lan("x", guest=("db", mac(1)))) as again:
        assert again.name == "lan x port 1"


@pytest.mark.parametrize("name", ["Db", "a.b", "-a", "x" * 64])
def test_what_cannot_be_a_guests_name(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^--net name=: .* cannot be the name of a guest"):
        open_lan("x", guest=(name, mac(1)))


def test_its_directories_are_the_users_alone(runtime: Path) -> None:
    with contextlib.closing(open_lan("x")):
        for path in (runtime / "pyvmm", runtime / "pyvmm" / "lan", runtime / "pyvmm" / "lan" / "x"):
            assert path.stat().st_mode & 0o777 == 0o700


def test_many_join_and_leave_at_once(runtime: Path) -> None:
    failures: list[Exception] = []

    def come_and_go() -> None:
        try:
            for _ in range(10):
                open_lan("x").close()
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_switch_that_was_killed_is_in_nobodys_way(runtime: Path) -> None:
    with contextlib.closing(open_lan("x")):
        os.kill(switches(runtime)[0], signal.SIGKILL)
    with two_ports() as (a, b):
        send(a, frame(BROADCAST, mac(1)))
        receive(b)


def test_ports_join_again_when_their_switch_dies(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.host.uplink._LIFE_MIN_S", 0)
    with two_ports() as (a, b):
        before = a.fileno(), b.fileno()
        os.kill(switches(runtime)[0], signal.SIGKILL)
        for port in (b, a):
            with pytest.raises(OSError, match=r"Broken pipe|reset"):
                receive(port)
            assert "connected again" in port.mend(32)
        assert (a.fileno(), b.fileno()) == before
        assert [port.name for port in (a, b)] == ["lan x port 0", "lan x port 1"]
        send(a, frame(BROADCAST, mac(1)))
        assert receive(b) == frame(BROADCAST, mac(1))


def test_what_dies_at_once_is_not_started_again_and_again(runtime: Path) -> None:
    with contextlib.closing(open_lan("x")) as port, pytest.raises(BackendError, match="as soon as it was there"):
        port.mend(32)


def test_a_recording(tmp_path: Path) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(b"what was there")
    with contextlib.closing(open_lan("x", pcap=str(path))) as a, contextlib.closing(open_lan("x")) as b:
        send(a, frame(BROADCAST, mac(1)))
        receive(b)
    recording = path.read_bytes()
    assert recording.startswith(PCAP_HEADER)
    assert records(recording.removeprefix(PCAP_HEADER)) == [frame(BROADCAST, mac(1))]


@pytest.mark.parametrize(
    ("path", "why"), [("/dev/null", "is no regular file"), ("/nowhere/x", "cannot write: No such file")]
)
def test_a_recording_that_cannot_be(path: str, why: str) -> None:
    with pytest.raises(BackendError, match=f"^--net lan=x,pcap={path}: {why}"):
        open_lan("x", pcap=path)


def test_a_recording_that_the_disk_has_no_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vmm.host.lan.port.os.write", full)
    with pytest.raises(BackendError, match="cannot write: No space left on device"):
        open_lan("x", pcap=str(tmp_path / "x.pcap"))


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a/b", "a.b", "a b", "é", "x" * 33])
def test_what_cannot_be_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a lan"):
        open_lan(name)


def test_a_path_that_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp/" + "x" * 90)
    with pytest.raises(ConfigError, match="too long for a socket"):
        open_lan("x")


def test_an_mtu_that_is_too_large() -> None:
    with pytest.raises(ConfigError, match="mtu=65522 is more than the 65521 of a lan"):
        open_lan("x", mtu=65522)


def test_a_directory_that_others_may_change_is_refused(runtime: Path) -> None:
    (runtime / "pyvmm").mkdir()
    (runtime / "pyvmm").chmod(0o777)
    with pytest.raises(BackendError, match="others may change it"):
        open_lan("x")


def test_a_switch_of_another_pyvmm(monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(open_lan("x")):
        monkeypatch.setattr(lan_port, "PROTOCOL", "2")
        with pytest.raises(BackendError, match=r"^lan x: its switch is another pyvmm's"):
            open_lan("x")


def test_a_switch_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lan_port, "_INTERPRETER", "/bin/false")
    with pytest.raises(BackendError, match=r"^lan x: its switch does not start: code 1"):
        open_lan("x")
    os.rmdir(lan_directory("x"))


def test_a_caller_that_says_nothing_of_sense_is_let_go(runtime: Path) -> None:
    with two_ports() as (a, b):
        for hello in (b"", b"what?", b"1 2", b"1 x 5", b"1 0 70000", b"1 0 5 6", b"\xff 0 5"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as caller:
                caller.connect(socket_path(lan_directory("x")))
                caller.send(hello)
                caller.settimeout(5)
                assert caller.recv(100) == b""
        send(a, frame(BROADCAST, mac(1)))
        receive(b)
