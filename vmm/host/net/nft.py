"""nftables, by nft(8): tables of pyvmm's own, each put in place in one transaction of the kernel's."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.config import Rate

#: What the names of pyvmm's tables begin with.
PREFIX = "pyvmm-"
_UNITS = ((1 << 20, "mbytes"), (1 << 10, "kbytes"), (1, "bytes"))


class NoNftables(BackendError):
    """The kernel has no nftables, and so no tables."""


class Chain(NamedTuple):
    """A base chain, which accepts what no rule drops."""

    name: str
    type: str
    hook: str
    priority: int


class Rule(NamedTuple):
    """A rule of the *chain*: in nft's own language, and as its JSON."""

    chain: str
    text: str
    expression: list[dict[str, Any]]


class Table:
    """A step: the table *family* *name* has these *chains* and *rules*, and no others."""

    def __init__(self, family: str, name: str, chains: Sequence[Chain], rules: Sequence[Rule]) -> None:
        self._table = {"family": family, "name": name}
        self._inside = {"family": family, "table": name}
        self._chains, self._rules = chains, rules
        self.what = f"nftables table {family} {name}"

    def describe(self) -> str:
        place = " ".join(self._table.values())
        lines = [f"add table {place}"]
        lines += [
            f"add chain {place} {name} {{ type {kind} hook {hook} priority {priority}; }}"
            for name, kind, hook, priority in self._chains
        ]
        lines += [f"add rule {place} {rule.chain} {rule.text}" for rule in self._rules]
        return "\n".join(f"nft '{line}'" for line in lines)

    def is_done(self) -> bool:
        listed = _nft("list", "table", *self._table.values(), missing_ok=True)
        found = [(item["rule"]["chain"], item["rule"]["expr"]) for item in listed if "rule" in item]
        chains = {item["chain"]["name"]: item["chain"].get("hook") for item in listed if "chain" in item}
        wanted = [(rule.chain, rule.expression) for rule in self._rules]
        return chains == {chain.name: chain.hook for chain in self._chains} and sorted(found, key=str) == sorted(
            wanted, key=str
        )

    def do(self) -> None:
        made: list[dict[str, Any]] = [{"table": self._table}]
        made += [
            {"chain": self._inside | {"name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept"}}
            for name, kind, hook, priority in self._chains
        ]
        made += [{"rule": self._inside | {"chain": rule.chain, "expr": rule.expression}} for rule in self._rules]
        _apply([*self._removal(), *({"add": one} for one in made)])

    def undo(self) -> None:
        with suppress(NoNftables):
            _apply(self._removal())

    def _removal(self) -> list[dict[str, Any]]:
        return [{"add": {"table": self._table}}, {"delete": {"table": self._table}}]  # the first where there is none


def require_nft() -> None:
    """Raise `BackendError` unless nft(8) is installed."""
    if shutil.which("nft") is None:
        raise BackendError("there is no nft", fix="run: sudo apt install nftables")


def foreign_drops() -> list[str]:
    """Chains of others that drop what they do not know, and so may keep guests from the world."""
    return [
        f"{chain['family']} {chain['table']} {chain['name']}"
        for chain in (item["chain"] for item in _nft("list", "chains") if "chain" in item)
        if chain.get("hook") in ("forward", "input")
        and chain.get("policy") == "drop"
        and not chain["table"].startswith(PREFIX)
    ]


def apply_script(script: str) -> None:
    """Do what *script* says, in nft's own language, in one transaction of the kernel's.

    Raises:
        BackendError, OSError: it is refused.
    """
    _answer(_run(["--file", "-"], script))


def match(left: dict[str, Any], right: Any, operator: str = "==") -> dict[str, Any]:
    """*left* is, or as *operator* says, *right*."""
    return {"match": {"op": operator, "left": left, "right": right}}


def meta(key: str) -> dict[str, Any]:
    """What the kernel knows of a packet, such as the device that it comes from (``iifname``)."""
    return {"meta": {"key": key}}


def exceeds(limit: Rate) -> tuple[str, dict[str, Any]]:
    """More than *limit*, in nft's own language and as its JSON: in the largest units that fit, as nft lists it."""
    text = f"limit rate over {limit.per_second} bytes/second burst {limit.burst} bytes"
    rate, rate_unit = _in_units(limit.per_second)
    burst, burst_unit = _in_units(limit.burst)
    units = {"rate_unit": rate_unit, "burst_unit": burst_unit}
    return text, {"limit": {"rate": rate, "burst": burst, "per": "second", "inv": True, **units}}


def _in_units(count: int) -> tuple[int, str]:
    return next((count // size, unit) for size, unit in _UNITS if count % size == 0)


def _nft(*arguments: str, missing_ok: bool = False) -> list[dict[str, Any]]:
    """What `nft --json` answers."""
    done = _run(["--json", *arguments])
    if done.returncode and missing_ok and "No such file" in done.stderr:
        return []
    return _answer(done)


def _apply(commands: Sequence[dict[str, Any]]) -> None:
    """Do all *commands* in one transaction of the kernel's."""
    _answer(_run(["--json", "--file", "-"], json.dumps({"nftables": commands})))


def _answer(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    if done.returncode == 0:
        return list(json.loads(done.stdout)["nftables"]) if done.stdout else []
    first = done.stderr.strip().partition("\n")[0].removeprefix("internal:0:0-0: ")
    if "Operation not permitted" in done.stderr:
        raise PermissionError(1, "Operation not permitted")
    kind = NoNftables if "cache initialization failed" in done.stderr else BackendError
    raise kind(f"nft: {first}", fix="does this kernel have nf_tables? run: sudo modprobe nf_tables nft_masq")


def _run(arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    require_nft()
    return subprocess.run(["nft", *arguments], input=text, capture_output=True, text=True, check=False)
