"""Managed networks for a person: a line each, or the picture of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What is said of a part: it is there, or not, or only root may know.
_PARTS = {True: "ok", False: "MISSING", None: "?"}
_UNITS = ((1 << 30, "G"), (1 << 20, "M"), (1 << 10, "K"))


def table(networks: Sequence[dict[str, Any]]) -> str:
    """*networks* (as `vmm.host.net.status.status` has them), a line each."""
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
            _limit(guest),
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
        lines += ["", f"{_limit(network)} each way"]
    lines += ["", *(f"{_PARTS[good]:<7}  {part}" for part, good in network["parts"].items())]
    if _is_broken(network):
        lines.append(f"run: sudo pyvmm net repair {network['name']}")
    if network["trial"]:
        lines.append(f"it stays after: sudo pyvmm net confirm {network['name']}")
    return "\n".join(lines) + "\n"


def _limit(of: dict[str, Any]) -> str:
    return f"limit {_size(of['limit']['per_second'])} bytes/s" if of["limit"] else ""


def _state(network: dict[str, Any]) -> str:
    if not network["ready"]:
        return "unfinished"
    if network["trial"]:
        return "on trial"
    return "broken" if _is_broken(network) else "up"


def _is_broken(network: dict[str, Any]) -> bool:
    return False in network["parts"].values()


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
