"""A bridge in place of a physical NIC, so that guests are on the host's own network."""

from __future__ import annotations

import errno
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from vmm.errors import BackendError, ConfigError
from vmm.host.net.link import find_device, ignoring, is_up, netlink
from vmm.host.net.nic import (
    Settings,
    add_addresses,
    copy_sysctls,
    drop_stand_ins,
    has_ipv6,
    has_multipath,
    read_settings,
    remove_addresses,
    replace_routes,
    set_dns,
    set_ipv6,
)
from vmm.host.net.persist import route_command
from vmm.host.net.reach import Reach

if TYPE_CHECKING:
    from vmm.host.net.link import Routes

_IFF_LOOPBACK = 0x8  # linux/if.h


@dataclass(frozen=True)
class Physical:
    """The bridge *name* with the *settings* of the device *nic*, its port; *ipv6*: whether the device had that.

    *persist*: what of `persist.MANAGERS` sets it up when the host boots; "" for none.
    """

    name: str
    nic: str
    settings: Settings
    ipv6: bool
    persist: str = ""
    kind: ClassVar = "physical"

    def to_json(self) -> dict[str, Any]:
        """As a JSON document."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Physical:
        """The network that `to_json` made *document* of."""
        fields = {name: value for name, value in document.items() if name != "kind"}
        return cls(**fields | {"settings": Settings(**document["settings"])})


def plan_physical(name: str, nic: str, persist: str = "") -> Physical:
    """The bridge *name* in place of the device *nic*, with what that has now.

    Raises:
        ConfigError: there is no such device, it cannot be a bridge's port, or another one has the name.
    """
    where = f"--physical {nic}"
    with netlink() as routes:
        link = find_device(routes, nic)
        if link is None:
            raise ConfigError("there is no such device", where=where, fix="run `ip -br link` to see the devices")
        if link.get_attr("IFLA_MASTER"):
            (master,) = routes.link("get", index=link.get_attr("IFLA_MASTER"))
            raise ConfigError(
                f"is a port of {master.get_attr('IFLA_IFNAME')} already",
                where=where,
                fix=f"use that: --net bridge={master.get_attr('IFLA_IFNAME')}",
            )
        if link["flags"] & _IFF_LOOPBACK or link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") == "bridge":
            raise ConfigError("cannot be a bridge's port", where=where, fix="name an Ethernet device")
        if not is_up(link):
            raise ConfigError("the device is down", where=where, fix=f"run: sudo ip link set {nic} up")
        if has_multipath(routes, nic):
            raise ConfigError(
                "has a route with several next hops, which cannot be moved in one stroke",
                where=where,
                fix="give each next hop a route of its own, with a metric",
            )
        if find_device(routes, name) is not None:
            raise ConfigError(f"the host has a device named {name}", where=f"network {name}", fix="choose another name")
        return Physical(name, nic, read_settings(routes, nic), has_ipv6(nic), persist)


class Takeover:
    """The bridge of *network* has the NIC as its port, and all that the NIC had.

    At each moment one of both has each address and each route, so connections go on.
    """

    def __init__(self, network: Physical) -> None:
        self._network = network
        self.what = f"bridge {network.name} in place of {network.nic}"

    def describe(self) -> str:
        name, nic, settings = self._network.name, self._network.nic, self._network.settings
        lines = [f"ip link add {name} address {settings.mac} mtu {settings.mtu} type bridge", f"ip link set {name} up"]
        lines += [f"ip address add {one['address']}/{one['prefixlen']} dev {name}" for one in settings.addresses]
        lines.append(f"ip link set {nic} master {name}")
        lines += [route_command(route, name) for route in settings.routes]
        lines += [f"ip address del {one['address']}/{one['prefixlen']} dev {nic}" for one in settings.addresses]
        lines += [f"resolvectl {what} {name} {' '.join(values)}" for what, values in settings.dns.items()]
        return "\n".join(lines)

    def is_done(self) -> bool:
        with netlink() as routes:
            bridge, nic = self._bridge(routes), find_device(routes, self._network.nic)
            if bridge is None or nic is None or nic.get_attr("IFLA_MASTER") != bridge["index"]:
                return False
            left = {message.get_attr("IFA_ADDRESS") for message in routes.get_addr(index=nic["index"])}
        return not any(one["address"] in left for one in self._network.settings.addresses)

    def do(self) -> None:
        """Do it, and see whether the host still reaches what it did; if not, all is undone."""
        nic, settings = self._network.nic, self._network.settings
        with netlink() as routes:
            if find_device(routes, nic) is None:
                raise BackendError(f"there is no {nic}", fix="run `ip -br link` to see the devices")
        reach = Reach(nic, settings.gateways, [str(one["address"]) for one in settings.addresses])
        try:
            self._move()
            reach.check(self._network.name)
            with netlink() as routes:
                drop_stand_ins(routes, self._network.name, settings)
        except BaseException:
            self.undo()
            raise

    def _move(self) -> None:
        name, nic, settings = self._network.name, self._network.nic, self._network.settings
        with netlink() as routes:
            if self._bridge(routes) is None:
                with ignoring(errno.EEXIST):
                    routes.link("add", ifname=name, kind="bridge", address=settings.mac, mtu=settings.mtu)
                if self._bridge(routes) is None:
                    raise BackendError(f"there is another device named {name}", fix="choose another name")
            index = find_device(routes, name)["index"]
            set_ipv6(name, on=self._network.ipv6)
            copy_sysctls(nic, name)
            routes.link("set", index=index, state="up")
            add_addresses(routes, name, settings)
            routes.link("set", index=find_device(routes, nic)["index"], master=index)
            replace_routes(routes, name, settings)
            remove_addresses(routes, nic, settings)
            set_ipv6(nic, on=False)  # its own address would answer in the bridge's stead
            set_dns(name, settings)

    def undo(self) -> None:
        nic, settings = self._network.nic, self._network.settings
        with netlink() as routes:
            bridge, link = self._bridge(routes), find_device(routes, nic)
            if bridge is None or link is None:
                return
            if link.get_attr("IFLA_MASTER") == bridge["index"]:
                routes.link("set", index=link["index"], master=0)
            set_ipv6(nic, on=self._network.ipv6)
            add_addresses(routes, nic, settings)
            replace_routes(routes, nic, settings)
            routes.link("del", index=bridge["index"])
            set_dns(nic, settings)
            drop_stand_ins(routes, nic, settings)

    def present(self) -> Physical:
        """The network with what the bridge has now: that is what the NIC is to get back."""
        own = self._network.settings
        with netlink() as routes:
            if not self.is_done():
                return self._network
            now = read_settings(routes, self._network.name)
        return replace(self._network, settings=replace(now, mac=own.mac, mtu=own.mtu, leased=own.leased))

    def renewed(self) -> Physical:
        """The network after a boot of the host: with what the NIC has now, unless that has made the bridge too.

        Raises:
            ConfigError: as `plan_physical`.
        """
        with netlink() as routes:
            if find_device(routes, self._network.name) is not None:
                return self._network
        return plan_physical(self._network.name, self._network.nic, self._network.persist)

    def _bridge(self, routes: Routes) -> Any:
        """rtnetlink's message about the bridge, if it is there and has the NIC's address."""
        link = find_device(routes, self._network.name)
        if link is None or link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND") != "bridge":
            return None
        return link if link.get_attr("IFLA_ADDRESS") == self._network.settings.mac else None
