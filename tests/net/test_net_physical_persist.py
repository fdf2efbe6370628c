"""What sets a physical network up at boot: `confirm` writes it, `delete` and a trial's end remove it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.net.killed import kill_at, lines
from tests.net.managed import Host, state
from vmm.cli.main import main
from vmm.host.net import networks, persist
from vmm.host.net.create import create_physical
from vmm.host.net.record import read_record
from vmm.host.net.store import Store

from .namespace import ip

pytestmark = pytest.mark.net


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the network managers' files are."""
    monkeypatch.setattr(persist, "ETC", str(tmp_path))
    return tmp_path


def trial_token(store: Store) -> str:
    record = read_record(store, "lab")
    assert record
    return record.token


def test_what_sets_it_up_at_boot_comes_with_confirm_and_goes_with_delete(host: Host, store: Store, etc: Path) -> None:
    file = etc / "netplan" / "90-pyvmm-lab.yaml"
    create_physical(store, "lab", "up0", confirm_timeout_s=30, persist="netplan")
    assert not file.exists()
    networks.confirm(store, "lab")
    assert '"addresses": [\n          "192.0.2.2/24"\n' in file.read_text()
    assert networks.missing(store, "lab") == []
    networks.delete(store, "lab")
    assert not list(file.parent.iterdir())


def test_ifupdowns_commands_make_the_bridge_again(host: Host, store: Store, etc: Path) -> None:
    ip("-6 address add 2001:db8::2/64 dev up0")
    ip("-6 route add default via 2001:db8::1 dev up0")
    before = state(host)
    create_physical(store, "lab", "up0", confirm_timeout_s=30, persist="ifupdown")
    networks.confirm(store, "lab")
    routes = ip("-4 route show dev lab"), ip("-6 route show default")
    ip("link del lab")
    for line in (etc / "network" / "interfaces.d" / "pyvmm-lab").read_text().splitlines():
        when, _, command = line.strip().partition(" ")
        if when in ("pre-up", "up"):
            subprocess.run(["sh", "-ec", command], check=True)
    assert (ip("-4 route show dev lab"), ip("-6 route show default")) == routes
    assert networks.missing(store, "lab") == []
    networks.delete(store, "lab")
    assert state(host) == before


def test_a_dry_run_of_confirm_shows_the_files_and_ends_no_trial(
    host: Host, store: Store, etc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_physical(store, "lab", "up0", confirm_timeout_s=30, persist="netplan")
    assert main(["net", "confirm", "lab", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"make configuration of lab for netplan:\n    {etc}/netplan/90-pyvmm-lab.yaml:\n")
    assert printed.endswith("\nnetwork lab: would stay\n")
    assert not (etc / "netplan").exists()
    assert trial_token(store)
    networks.delete(store, "lab")


def test_confirm_names_the_files_that_contradict_its_own(
    host: Host, store: Store, etc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (etc / "network").mkdir()
    (etc / "network" / "interfaces").write_text("iface up0 inet dhcp\n")
    assert main(["net", "create", "lab", "--physical", "up0", "--persist", "ifupdown"]) == 0
    assert main(["net", "confirm", "lab"]) == 0
    assert f"{etc}/network/interfaces has up0 too: take its addresses" in capsys.readouterr().err
    assert main(["net", "delete", "lab"]) == 0
    assert (etc / "network" / "interfaces").exists()


@pytest.mark.parametrize("end", ["repair", "delete", "take back"])
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 20])
def test_confirm_killed_at_any_line(host: Host, store: Store, end: str, stride: int, etc: Path) -> None:
    """SIGKILL at a line; then it stays, or is still on trial, and all goes back in the end, the files too."""

    before = state(host)
    create_physical(store, "lab", "up0", confirm_timeout_s=30, persist="netplan")
    count = lines(lambda: networks.confirm(store, "lab"))
    networks.delete(store, "lab")
    for line in range(0, count, stride):
        create_physical(store, "lab", "up0", confirm_timeout_s=30, persist="netplan")
        token = trial_token(store)
        kill_at(lambda: networks.confirm(store, "lab"), line)
        if end == "repair":
            networks.repair(store, "lab")
            assert networks.missing(store, "lab") == []
        if end == "take back":
            networks.take_back(store, "lab", token)
        if store.networks():
            networks.delete(store, "lab")
        assert state(host) == before, f"killed at line {line}"
        assert not list((etc / "netplan").iterdir())
