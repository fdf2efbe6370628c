"""The packet filter of a managed network.

Guests reach the world by the host's address; nobody from outside, other networks of pyvmm among them, begins a
conversation with them or with the host's address on their network. The table only drops and masquerades: what another
table accepts, drops or counts stays as it is (nftables wiki, "Configuring chains": a drop is final, an accept is not).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.host.net.nft import PREFIX, Chain, Rule, Table, exceeds, match, meta

if TYPE_CHECKING:
    from vmm.host.net.network import Nat

_CHAINS = (
    Chain("forward", "filter", "forward", 0),
    Chain("input", "filter", "input", 0),
    Chain("world", "nat", "postrouting", 100),
)
_DROP: dict[str, Any] = {"drop": None}


class Rules(Table):
    """The table ``inet pyvmm-NAME`` of *network*."""

    def __init__(self, network: Nat) -> None:
        super().__init__("inet", f"{PREFIX}{network.name}", _CHAINS, _rules(network))


def _rules(network: Nat) -> list[Rule]:
    name = network.name
    inward, outward = match(meta("oifname"), name), match(meta("iifname"), name)
    new = match({"ct": {"key": "state"}}, {"set": ["established", "related"]}, "!=")
    rules = [
        Rule("forward", f"iifname {name} oifname {name} accept", [outward, inward, {"accept": None}]),
        Rule("forward", f"oifname {name} ct state != {{ established, related }} drop", [inward, new, _DROP]),
    ]
    if network.subnet6 is None:
        ipv6 = match(meta("nfproto"), "ipv6")
        rules.append(Rule("forward", f"iifname {name} meta nfproto ipv6 drop", [outward, ipv6, _DROP]))
    else:
        rules += _family_rules(name, "ip6", network.subnet6, network.gateway6)
    rules += _family_rules(name, "ip", network.subnet, network.gateway)
    if network.limit:
        text, excess = exceeds(network.limit)
        rules.append(Rule("forward", f"iifname {name} {text} drop", [outward, excess, _DROP]))
    return rules


def _family_rules(name: str, protocol: str, subnet: Any, host: Any) -> list[Rule]:
    """Of the network *name*: *subnet* is of the *protocol*, and *host* the host's address in it."""
    source, destination = ({"payload": {"protocol": protocol, "field": field}} for field in ("saddr", "daddr"))
    prefix = {"prefix": {"addr": str(subnet.network_address), "len": subnet.prefixlen}}
    outward, leaving = match(meta("iifname"), name), match(meta("oifname"), name, "!=")
    others = [match(meta("iifname"), name, "!="), match(meta("iifname"), "lo", "!=")]
    return [
        Rule(
            "forward",
            f"iifname {name} {protocol} saddr != {subnet} drop",
            [outward, match(source, prefix, "!="), _DROP],
        ),
        Rule(
            "input",
            f"iifname != {name} iifname != lo {protocol} daddr {host} drop",
            [*others, match(destination, str(host)), _DROP],
        ),
        Rule(
            "world",
            f"oifname != {name} {protocol} saddr {subnet} masquerade",
            [leaving, match(source, prefix), {"masquerade": None}],
        ),
    ]
