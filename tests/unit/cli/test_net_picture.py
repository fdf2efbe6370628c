"""Networks as a person sees them."""

from __future__ import annotations

from typing import Any

from vmm.cli.net_picture import picture, table

NOTHING = {"rx_bytes": 0, "rx_packets": 0, "tx_bytes": 0, "tx_packets": 0}
LAB: dict[str, Any] = {
    "name": "lab", "kind": "nat", "bridge": "lab", "subnets": ["10.77.0.0/24"], "addresses": ["10.77.0.1/24"],
    "limit": None, "ready": True, "trial": False, "uplinks": ["eth0"],
    "parts": {"bridge lab": True, "dnsmasq on lab": True},
    "guests": [
        {"name": "web1", "mac": "52:54:00:00:00:01", "address": "10.77.0.200", "attached": True, "there": True,
         "running": True, "limit": {"per_second": 1 << 20, "burst": 1 << 20},
         "device": "pyvmm-00000001", **NOTHING, "rx_bytes": 3 << 19, "tx_bytes": 900},
        {"name": None, "mac": None, "address": None, "attached": False, "there": True,
         "limit": None, "running": False, "device": "pyvmm0", **NOTHING},
    ],
    "leases": [{"mac": "52:54:00:00:00:02", "address": "10.77.0.9", "name": "other"}],
    **NOTHING,
}  # fmt: skip


def test_a_picture() -> None:
    assert picture(LAB) == (
        "network lab: nat, 10.77.0.0/24, up\n"
        "\n"
        "eth0 ── nat ── lab  10.77.0.1/24\n"
        "               ├─ pyvmm-00000001  web1  10.77.0.200  52:54:00:00:00:01  running  rx 1.5M tx 900  "
        "limit 1.0M bytes/s\n"
        "               └─ pyvmm0          -     -            -                  off      rx 0 tx 0\n"
        "\n"
        "other leases:\n"
        "  10.77.0.9  52:54:00:00:00:02  other\n"
        "\n"
        "ok       bridge lab\n"
        "ok       dnsmasq on lab\n"
    )


def test_what_is_missing_is_marked() -> None:
    lines = picture(LAB | {"guests": [], "leases": [], "parts": {"bridge lab": False}}).splitlines()
    assert lines[0].endswith(", broken")
    assert lines[-2:] == ["MISSING  bridge lab", "run: sudo pyvmm net repair lab"]


def test_what_only_root_may_know_is_not_said_to_be_missing() -> None:
    lines = picture(LAB | {"guests": [], "leases": [], "parts": {"bridge lab": None}}).splitlines()
    assert lines[0].endswith(", up")
    assert lines[-1] == "?        bridge lab"


def test_a_trial_says_how_it_ends() -> None:
    assert picture(LAB | {"trial": True}).endswith("\nit stays after: sudo pyvmm net confirm lab\n")


def test_a_line_each() -> None:
    assert table(
        [LAB, LAB | {"name": "new", "ready": False, "guests": [], "subnets": ["10.77.0.0/24", "fd00::/64"]}]
    ) == (
        "network  kind  addresses               guests  state\n"
        "lab      nat   10.77.0.0/24            2       up\n"
        "new      nat   10.77.0.0/24 fd00::/64  0       unfinished\n"
    )
