"""Managed networks for a person: a line each, or the picture of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_UNITS = ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


def table(networks: Sequence[dict[str, Any]]) -> str:
    """*networks* (as `vmm.host.net.look.look_at` has them), a line each."""
    lines = [("network", "kind", "addresses", "guests", "state")]
    for network in networks:
        addresses = " ".join(network["subnets"] or network["addresses"]) or "-"
        lines.append((network["name"], network["kind"], addresses, str(len(network["guests"])), _state(network)))
    return _columns(lines)


def picture(network: dict[str, Any]) -> str:
    """The host's devices, the bridge, its ports and the guests of *network*, and what is wrong with it."""
    host = "+".join(network["uplinks"]) or "(no default route)"
    lines = [
        ", ".join([f"network {network['name']}: {network['kind']}", *network["subnets"], _state(network)]),
        "",
        f"{host} ── {network['kind']} ── {network['bridge']}  {' '.join(network['addresses'])}",
    ]
    rows = [
        (
            guest["device"],
            guest["name"] or "-",
            guest["address"] or "-",
            guest["mac"] or "-",
            _link(guest),
            f"rx {_size(guest['rx_bytes'])} tx {_size(guest['tx_bytes'])}" if guest["there"] else "",
        )
        for guest in network["guests"]
    ]
    indent = " " * (len(host) + len(network["kind"]) + 8)
    for index, line in enumerate(_columns(rows).splitlines()):
        lines.append(f"{indent}{'└' if index == len(rows) - 1 else '├'}─ {line}")
    if network["leases"]:
        lines += ["", "other leases:"]
        lines += [f"  {lease['address']}  {lease['mac']}  {lease['name']}" for lease in network["leases"]]
    if network["limit"]:
        lines += ["", f"limit: {_size(network['limit']['per_second'])} bytes/s each way"]
    lines += ["", *(f"{'ok     ' if good else 'MISSING'}  {part}" for part, good in network["parts"].items())]
    if not all(network["parts"].values()):
        lines.append(f"run: sudo pyvmm net repair {network['name']}")
    return "\n".join(lines) + "\n"


def _state(network: dict[str, Any]) -> str:
    if not network["ready"]:
        return "unfinished"
    if network["trial"]:
        return "on trial"
    return "up" if all(network["parts"].values()) else "broken"


def _link(guest: dict[str, Any]) -> str:
    if guest["running"]:
        return "running"
    return "attached" if guest["attached"] and guest["there"] else "off"


def _size(count: int) -> str:
    for size, unit in _UNITS:
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
