"""What a clone has to itself, and what it shares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vmm.api import place
from vmm.cli.clone import cloned, names_of
from vmm.cli.options import Options
from vmm.config import DiskConfig, MachineConfig, NetConfig, VsockConfig, parse_net
from vmm.errors import ConfigError

NAMED = Options({"name": ["copy"]})


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYVMM_RUN", str(tmp_path))


def disk(**options: Any) -> DiskConfig:
    (made,) = cloned(MachineConfig(kernel="k", disks=(DiskConfig(path="image", **options),)), NAMED).disks
    return made


def net(text: str) -> NetConfig:
    (made,) = cloned(MachineConfig(kernel="k", nets=(parse_net(text),)), NAMED).nets
    return made


def test_what_it_writes_to_its_disks_is_thrown_away_at_the_end() -> None:
    assert disk() == DiskConfig(path="image", snapshot=True)
    assert disk(overlay=True) == DiskConfig(path="image", overlay=True, snapshot=True)
    assert disk(snapshot=True) == DiskConfig(path="image", snapshot=True)
    assert disk(cache="none") == DiskConfig(path="image", snapshot=True)
    assert disk(readonly=True, cache="none") == DiskConfig(path="image", readonly=True, cache="none")


def test_on_a_network_it_is_another_guest() -> None:
    assert net("lab,name=web,private=yes") == parse_net("lab,name=copy,private=yes")
    assert net("lab,name=web,mac=52:54:00:00:00:01") == parse_net("lab,name=copy")
    assert net("lan=lab,name=web,vlan=5,pcap=file") == parse_net("lan=lab,name=copy,vlan=5")
    assert net("lan=lab") == parse_net("lan=lab")
    assert net("user,hostfwd=tcp:2222-:22") == parse_net("user")


def test_a_tap_cannot_have_two_cards() -> None:
    with pytest.raises(ConfigError, match="tap tap0: can have one card only\n  say where the clones' cards go: --net"):
        net("tap=tap0")


def test_its_sockets_are_in_its_own_directory() -> None:
    config = MachineConfig(kernel="k", vsock=VsockConfig(path="/there", cid=7))
    assert cloned(config, NAMED).vsock == VsockConfig(cid=7)


def test_what_is_given_is_taken() -> None:
    config = MachineConfig(
        kernel="k", disks=(DiskConfig(path="a"),), nets=(parse_net("tap=a"),), vsock=VsockConfig(path="/there")
    )
    assert cloned(config, Options({name: ["x"] for name in ("disk", "net", "vsock")})) == config


def test_names_are_by_what_is_cloned_and_free() -> None:
    taken = place.claim("snap-img-2")
    assert names_of("/tmp/snap.img", Options({"count": ["3"]})) == ["snap-img-1", "snap-img-3", "snap-img-4"]
    taken.release()
    assert names_of("/tmp/..", Options({})) == ["clone-1"]


def test_names_are_what_is_said() -> None:
    assert names_of("web", Options({"name": ["one"]})) == ["one"]
    assert names_of("web", Options({"name": ["one"], "count": ["2"]})) == ["one-1", "one-2"]
