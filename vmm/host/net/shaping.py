"""Limits of devices: of what they send, by tbf(8), the kernel's token bucket; of what comes from them, by nftables.

What a tap or a bridge sends is what guests receive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import ConfigError
from vmm.host.net.link import find_device, netlink
from vmm.host.net.nft import Chain, Rule, Table, exceeds, match, meta

if TYPE_CHECKING:
    from vmm.config import Rate
    from vmm.host.net.link import Routes

_ROOT = 0xFFFF_FFFF  # TC_H_ROOT, linux/pkt_sched.h
_LATENCY = "50ms"
_RATE_MAX = (1 << 32) - 1
_BURST_MIN = 2048
#: With segmentation offload. nftables lets nothing pass that is larger than rate and burst (net/netfilter/nft_limit.c).
_FRAME_MAX = 65535 + 18


class Shaping:
    """The device *device* sends no more than *limit*, in bytes; what exceeds it waits up to 50 ms."""

    def __init__(self, device: str, limit: Rate) -> None:
        self._device, self._limit = device, limit
        self.what = f"limit of {device}"

    def describe(self) -> str:
        rate, burst = self._limit.per_second, self._limit.burst
        return f"tc qdisc replace dev {self._device} root tbf rate {rate}bps burst {burst} latency {_LATENCY}"

    def is_done(self) -> bool:
        with netlink() as routes:
            filter_ = _root(routes, self._device)
            if filter_ is None or filter_.get_attr("TCA_KIND") != "tbf":
                return False
            parameters = filter_.get_nested("TCA_OPTIONS", "TCA_TBF_PARMS")
        return bool(parameters["rate"] == self._limit.per_second)

    def do(self) -> None:
        with netlink() as routes:
            index = find_device(routes, self._device)["index"]
            rate, burst = self._limit.per_second, self._limit.burst
            routes.tc("replace", "tbf", index=index, rate=rate, burst=burst, latency=_LATENCY)

    def undo(self) -> None:
        with netlink() as routes:
            filter_ = _root(routes, self._device)
            if filter_ is not None and filter_.get_attr("TCA_KIND") == "tbf":
                routes.tc("del", index=filter_["index"], handle=filter_["handle"], parent=_ROOT)


class Policing(Table):
    """No more than *limit*, in bytes, comes from the bridge's port *device*; what exceeds it is dropped."""

    def __init__(self, device: str, limit: Rate) -> None:
        text, excess = exceeds(limit)
        rule = Rule("sent", f"iifname {device} {text} drop", [match(meta("iifname"), device), excess, {"drop": None}])
        super().__init__("bridge", device, [Chain("sent", "filter", "prerouting", 0)], [rule])


def check_limit(limit: Rate) -> Rate:
    """*limit*, if it can be kept.

    Raises:
        ConfigError: it cannot.
    """
    if limit.per_second > _RATE_MAX:
        raise ConfigError(f"rate={limit.per_second} is more than {_RATE_MAX} bytes a second", where="--qos")
    least = max(_BURST_MIN, _FRAME_MAX - limit.per_second)
    if limit.burst < least:
        raise ConfigError(
            f"burst={limit.burst} lets no large frame through", where="--qos", fix=f"at least burst={least}"
        )
    return limit


def _root(routes: Routes, device: str) -> Any:
    """rtnetlink's message about the queueing discipline of *device*, or None without one."""
    link = find_device(routes, device)
    return next(iter(routes.get_qdiscs(index=link["index"])), None) if link is not None else None
