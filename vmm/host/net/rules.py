"""The packet filter of a managed network: one nftables table of its own, put in place in one transaction.

Guests reach the world by the host's address; nobody from outside, other networks of pyvmm among them, begins a
conversation with them or with the host's address on their network. The table only drops and masquerades: what another
table accepts, drops or counts stays as it is (nftables wiki, "Configuring chains": a drop is final, an accept is not).
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from vmm.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config import Rate
    from vmm.host.net.network import Nat

_FAMILY = "inet"
_PREFIX = "pyvmm-"
_UNITS = ((1 << 20, "mbytes"), (1 << 10, "kbytes"), (1, "bytes"))
_CHAINS = (("forward", "filter", "forward", 0), ("input", "filter", "input", 0), ("world", "nat", "postrouting", 100))


class Rules:
    """The table ``inet pyvmm-NAME`` of *network*."""

    def __init__(self, network: Nat) -> None:
        self._network = network
        self._table = f"{_PREFIX}{network.name}"
        self.what = f"nftables table {_FAMILY} {self._table}"

    def describe(self) -> str:
        lines = [f"nft table {_FAMILY} {self._table}:"]
        lines += [f"  {chain}: {text}" for chain, text, _ in self._rules()]
        return "\n".join(lines)

    def is_done(self) -> bool:
        listed = _nft("list", "table", _FAMILY, self._table, missing_ok=True)
        found = [(item["rule"]["chain"], item["rule"]["expr"]) for item in listed if "rule" in item]
        chains = {item["chain"]["name"]: item["chain"].get("hook") for item in listed if "chain" in item}
        wanted = [(chain, expression) for chain, _, expression in self._rules()]
        return chains == {name: hook for name, _, hook, _ in _CHAINS} and sorted(found, key=str) == sorted(
            wanted, key=str
        )

    def do(self) -> None:
        table = {"family": _FAMILY, "name": self._table}
        commands: list[dict[str, Any]] = [{"add": {"table": table}}, {"delete": {"table": table}}]
        commands.append({"add": {"table": table}})
        inside = {"family": _FAMILY, "table": self._table}
        for name, kind, hook, priority in _CHAINS:
            chain = {"name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept"}
            commands.append({"add": {"chain": inside | chain}})
        for chain_name, _, expression in self._rules():
            commands.append({"add": {"rule": inside | {"chain": chain_name, "expr": expression}}})
        _nft_apply(commands)

    def undo(self) -> None:
        table = {"family": _FAMILY, "name": self._table}
        _nft_apply([{"add": {"table": table}}, {"delete": {"table": table}}])  # the first for where there is none

    def _rules(self) -> list[tuple[str, str, list[dict[str, Any]]]]:
        """The chain of each rule, the rule as nft prints it, and as nft's JSON."""
        network, name = self._network, self._network.name
        inward, outward = _match(_meta("oifname"), name), _match(_meta("iifname"), name)
        others = [_match(_meta("iifname"), name, "!="), _match(_meta("iifname"), "lo", "!=")]
        drop: dict[str, Any] = {"drop": None}
        new = _match({"ct": {"key": "state"}}, {"set": ["established", "related"]}, "!=")
        rules = [
            ("forward", f"iifname {name} oifname {name} accept", [outward, inward, {"accept": None}]),
            ("forward", f"oifname {name} ct state != {{ established, related }} drop", [inward, new, drop]),
        ]
        if network.subnet6 is None:
            rules.append(
                ("forward", f"iifname {name} meta nfproto ipv6 drop", [outward, _match(_meta("nfproto"), "ipv6"), drop])
            )
        for protocol, subnet, host in (
            ("ip", network.subnet, network.gateway),
            ("ip6", network.subnet6, network.gateway6),
        ):
            if subnet is None:
                continue
            prefix = {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}
            foreign, own = (_match(_field(protocol, "saddr"), prefix, operator) for operator in ("!=", "=="))
            rules += [
                ("forward", f"iifname {name} {protocol} saddr != {subnet} drop", [outward, foreign, drop]),
                (
                    "input",
                    f"iifname != {name} iifname != lo {protocol} daddr {host} drop",
                    [*others, _match(_field(protocol, "daddr"), str(host)), drop],
                ),
                (
                    "world",
                    f"oifname != {name} {protocol} saddr {subnet} masquerade",
                    [_match(_meta("oifname"), name, "!="), own, {"masquerade": None}],
                ),
            ]
        if network.limit:
            rate = network.limit.per_second
            rules.append(
                ("forward", f"iifname {name} over {rate} bytes/second drop", [outward, _limit(network.limit), drop])
            )
        return rules


def foreign_drops() -> list[str]:
    """Chains of others that drop what they do not know, and so may keep guests from the world."""
    return [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in (item["chain"] for item in _nft("list", "chains") if "chain" in item)
        if chain.get("hook") in ("forward", "input")
        and chain.get("policy") == "drop"
        and not chain["table"].startswith(_PREFIX)
    ]


def apply_script(script: str) -> None:
    """Do what *script* says, in nft's own language, in one transaction of the kernel's.

    Raises:
        BackendError, OSError: it is refused.
    """
    _answer(_run(["--file", "-"], script))


def _match(left: dict[str, Any], right: Any, operator: str = "==") -> dict[str, Any]:
    return {"match": {"op": operator, "left": left, "right": right}}


def _meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def _field(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def _limit(limit: Rate) -> dict[str, Any]:
    """More than *limit*, in the largest units that fit, as nft lists it."""
    rate, rate_unit = _in_units(limit.per_second)
    burst, burst_unit = _in_units(limit.burst)
    units = {"rate_unit": rate_unit, "burst_unit": burst_unit}
    return {"limit": {"rate": rate, "burst": burst, "per": "second", "inv": True, **units}}


def _in_units(count: int) -> tuple[int, str]:
    return next((count // size, unit) for size, unit in _UNITS if count % size == 0)


def _nft(*arguments: str, missing_ok: bool = False) -> list[dict[str, Any]]:
    """What `nft --json` answers."""
    done = _run(["--json", *arguments])
    if done.returncode and missing_ok and "No such file" in done.stderr:
        return []
    return _answer(done)


def _nft_apply(commands: Sequence[dict[str, Any]]) -> None:
    """Do all *commands* in one transaction of the kernel's."""
    _answer(_run(["--json", "--file", "-"], json.dumps({"nftables": commands})))


def _answer(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    if done.returncode == 0:
        return list(json.loads(done.stdout)["nftables"]) if done.stdout else []
    first = done.stderr.strip().partition("\n")[0].removeprefix("internal:0:0-0: ")
    if "Operation not permitted" in done.stderr:
        raise PermissionError(1, "Operation not permitted")
    raise BackendError(f"nft: {first}", fix="does this kernel have nf_tables? run: sudo modprobe nf_tables nft_masq")


def _run(arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BackendError("there is no nft", fix="run: sudo apt install nftables") from None
