"""The files by which a host's own network manager sets up a physical network."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from vmm.errors import ConfigError
from vmm.host.net import persist
from vmm.host.net.nic import Settings
from vmm.host.net.persist import MANAGERS, Persistence, check_manager
from vmm.host.net.physical import Physical

MAC = "52:54:00:00:00:01"
BOOT, KERNEL, RA, DHCP = 3, 2, 9, 16  # linux/rtnetlink.h


def address(text: str, **more: Any) -> dict[str, Any]:
    local, _, prefixlen = text.partition("/")
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    return {"family": family, "address": local, "prefixlen": int(prefixlen), "IFA_FLAGS": 0, **more}


def route(dst: str, family: int = socket.AF_INET, **more: Any) -> dict[str, Any]:
    return {"family": family, "dst": dst, "proto": BOOT, "scope": 0, "flags": 0, "table": 254, **more}


STATIC = Settings(
    mac=MAC,
    mtu=1400,
    addresses=[address("192.0.2.2/24"), address("2001:db8::2/64")],
    leased=[],
    routes=[
        route("192.0.2.0/24", proto=KERNEL),
        route("203.0.113.9/32", table=100),
        route("default", gateway="192.0.2.1", priority=7, prefsrc="192.0.2.2", flags=4),
        route("default", socket.AF_INET6, gateway="2001:db8::1", priority=1024),
    ],
    dns={"dns": ["192.0.2.53", "2001:db8::53"], "domain": ["example.org", "~."]},
)
#: All of it is from the router: nothing is to be written down.
GIVEN = Settings(
    mac=MAC,
    mtu=1500,
    addresses=[
        address("192.0.2.2/24"),
        address("2001:db8::2/64", IFA_CACHEINFO={"ifa_preferred": 1800, "ifa_valid": 3600}),
    ],
    leased=["192.0.2.2"],
    routes=[
        route("default", gateway="192.0.2.1", proto=DHCP),
        route("default", socket.AF_INET6, gateway="fe80::1", proto=RA),
    ],
    dns={"dns": ["192.0.2.53"]},
)


def files(manager: str, settings: Settings, *, ipv6: bool = True) -> dict[str, str]:
    return MANAGERS[manager](Physical("lab", "eth0", settings, ipv6, manager))


def test_networkd_static() -> None:
    assert files("systemd-networkd", STATIC) == {
        "systemd/network/00-pyvmm-lab.netdev": f"[NetDev]\nName=lab\nKind=bridge\nMACAddress={MAC}\n",
        "systemd/network/00-pyvmm-lab.port.network": (
            "[Match]\nName=eth0\n\n[Link]\nMTUBytes=1400\n\n[Network]\nBridge=lab\nLinkLocalAddressing=no\n"
        ),
        "systemd/network/00-pyvmm-lab.network": """\
[Match]
Name=lab

[Link]
MTUBytes=1400

[Network]
Address=192.0.2.2/24
Address=2001:db8::2/64
DNS=192.0.2.53
DNS=2001:db8::53
Domains=example.org
Domains=~.

[Route]
Destination=203.0.113.9/32
Table=100

[Route]
Destination=0.0.0.0/0
Gateway=192.0.2.1
Metric=7
PreferredSource=192.0.2.2
GatewayOnLink=yes

[Route]
Destination=::/0
Gateway=2001:db8::1
Metric=1024
""",
    }


def test_networkd_by_dhcp() -> None:
    text = files("systemd-networkd", GIVEN)["systemd/network/00-pyvmm-lab.network"]
    assert text == "[Match]\nName=lab\n\n[Link]\nMTUBytes=1500\n\n[Network]\nDHCP=ipv4\n"


def test_ifupdown_static() -> None:
    assert files("ifupdown", STATIC) == {
        "network/interfaces.d/pyvmm-lab": f"""\
auto lab
iface lab inet manual
    pre-up ip link add lab address {MAC} mtu 1400 type bridge
    pre-up ip link set eth0 mtu 1400 master lab up
    pre-up echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 || true
    pre-up ip link set lab up
    up ip address add 192.0.2.2/24 dev lab
    up ip address add 2001:db8::2/64 dev lab
    up ip -4 route replace 203.0.113.9/32 dev lab table 100
    up ip -4 route replace default via 192.0.2.1 dev lab metric 7 src 192.0.2.2 onlink
    up ip -6 route replace default via 2001:db8::1 dev lab metric 1024
    dns-nameservers 192.0.2.53 2001:db8::53
    dns-search example.org ~.
    post-down ip link del lab
"""
    }


def test_ifupdown_by_dhcp() -> None:
    assert files("ifupdown", GIVEN) == {
        "network/interfaces.d/pyvmm-lab": f"""\
auto lab
iface lab inet dhcp
    pre-up ip link add lab address {MAC} mtu 1500 type bridge
    pre-up ip link set eth0 mtu 1500 master lab up
    pre-up echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6 || true
    pre-up ip link set lab up
    post-down ip link del lab
"""
    }


def netplan(settings: Settings, *, ipv6: bool = True) -> Any:
    return json.loads(files("netplan", settings, ipv6=ipv6)["netplan/90-pyvmm-lab.yaml"])["network"]


PORT = {"dhcp4": False, "dhcp6": False, "accept-ra": False, "link-local": []}
BRIDGE = {"interfaces": ["eth0"], "macaddress": MAC, "parameters": {"stp": False}}


def test_netplan_static() -> None:
    assert netplan(STATIC) == {
        "version": 2,
        "ethernets": {"eth0": {**PORT, "mtu": 1400}},
        "bridges": {
            "lab": {
                **BRIDGE,
                "mtu": 1400,
                "dhcp4": False,
                "addresses": ["192.0.2.2/24", "2001:db8::2/64"],
                "nameservers": {"addresses": ["192.0.2.53", "2001:db8::53"], "search": ["example.org", "~."]},
                "routes": [
                    {"to": "203.0.113.9/32", "table": 100, "scope": "link"},
                    {"to": "0.0.0.0/0", "via": "192.0.2.1", "metric": 7, "from": "192.0.2.2", "on-link": True},
                    {"to": "::/0", "via": "2001:db8::1", "metric": 1024},
                ],
            }
        },
    }


def test_netplan_by_dhcp() -> None:
    assert netplan(GIVEN) == {
        "version": 2,
        "ethernets": {"eth0": {**PORT, "mtu": 1500}},
        "bridges": {"lab": {**BRIDGE, "mtu": 1500, "dhcp4": True}},
    }


def test_a_nic_without_ipv6() -> None:
    network = files("systemd-networkd", GIVEN, ipv6=False)["systemd/network/00-pyvmm-lab.network"]
    assert network.endswith("DHCP=ipv4\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n")
    assert "conf/lab/disable_ipv6" in files("ifupdown", GIVEN, ipv6=False)["network/interfaces.d/pyvmm-lab"]
    assert netplan(GIVEN, ipv6=False)["bridges"]["lab"]["link-local"] == []


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(persist, "ETC", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("manager", MANAGERS)
def test_files_come_and_go(etc: Path, manager: str) -> None:
    step = Persistence(Physical("lab", "eth0", STATIC, ipv6=True, persist=manager))
    assert not step.is_done()
    step.do()
    step.do()
    assert step.is_done()
    written = {str(path.relative_to(etc)): path.read_text() for path in etc.rglob("*") if path.is_file()}
    assert written == files(manager, STATIC)
    step.undo()
    step.undo()
    assert not [path for path in etc.rglob("*") if path.is_file()]


def test_netplans_is_roots_alone(etc: Path) -> None:
    Persistence(Physical("lab", "eth0", STATIC, ipv6=True, persist="netplan")).do()
    assert os.stat(etc / "netplan" / "90-pyvmm-lab.yaml").st_mode & 0o777 == 0o600


def test_foreign_files_are_named_and_kept(etc: Path) -> None:
    step = Persistence(Physical("lab", "eth0", STATIC, ipv6=True, persist="ifupdown"))
    step.do()
    (etc / "network" / "interfaces").write_text("iface eth0 inet dhcp\n")
    (etc / "network" / "interfaces.d" / "other").write_text("iface eth01 inet dhcp\n")
    assert step.others() == [f"{etc}/network/interfaces"]
    step.undo()
    assert (etc / "network" / "interfaces").exists()


def test_a_manager_that_the_host_lacks(etc: Path) -> None:
    with pytest.raises(ConfigError, match=r"the host has no netplan: there is no .*/netplan"):
        check_manager("netplan")
    with pytest.raises(ConfigError, match="'wicked' is none of systemd-networkd, ifupdown, netplan"):
        check_manager("wicked")
