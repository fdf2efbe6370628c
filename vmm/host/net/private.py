"""A guest with a fixed address behind a NAT of its own, so that copies of one machine run side by side.

The guest's tap is in a network namespace that nothing but the tap's descriptors holds, so all of it goes with the
process that has them, however that ends. A veth pair leads from there to the managed network, where the guest has the
addresses that its name gives; whoever speaks to these speaks to the guest.

::

    guest 10.0.2.15 ── tap 10.0.2.2 ─[NAT]─ veth ── bridge of the network
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from vmm.errors import BackendError
from vmm.host.net.bridge import join_bridge
from vmm.host.net.link import find_device, netlink
from vmm.host.net.nft import apply_script
from vmm.host.tap import Tap, add_queues, attach, choose_mtu, open_tun
from vmm.mac import default_mac

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmm.host.net.guests import Guest
    from vmm.host.net.network import Nat

GUEST, GATEWAY, PREFIX = "10.0.2.15", "10.0.2.2", 24
#: The guest's and the gateway's: the same for all, as a copied guest remembers them.
GUEST_MAC = default_mac("private guest")
_GATEWAY_MAC = "52:54:00:00:02:02"
_TAP, _OUT = "guest", "out"
_CLONE_NEWNET = 0x4000_0000

_libc = ctypes.CDLL(None, use_errno=True)


class PrivateTap(Tap):
    """A tap with a network namespace and a DHCP server of its own; they end with it."""

    __slots__ = ("_dhcp", "_outside")

    def __init__(self, fds: list[int], mtu: int, dhcp: subprocess.Popen[bytes], outside: str) -> None:
        super().__init__(fds, _TAP, mtu)
        self._dhcp, self._outside = dhcp, outside

    def close(self) -> None:
        """Take all of it away."""
        self._dhcp.kill()
        self._dhcp.wait()
        with netlink() as routes:
            link = find_device(routes, self._outside)
            if link is not None:
                routes.link("del", index=link["index"])
        super().close()


def open_private(network: Nat, guest: Guest, mtu: int | None, queues: int) -> PrivateTap:
    """A tap for *guest* behind a NAT of its own on *network*; *mtu* in bytes is the guest's, None the network's.

    The calling thread is in the new namespace for a while; the DHCP server ends with that thread.

    Raises:
        ConfigError: *mtu* is larger than the network's.
        BackendError: the host refuses. Nothing is left behind.
    """
    where = f"network {network.name}, private guest {guest.name}"
    fds: list[int] = []
    dhcp = None
    try:
        with _namespace() as outside:
            _set("ipv4/ip_forward", "1")
            _set("ipv6/conf/default/disable_ipv6", "1")
            largest = _connect(network, guest, outside)
            guest_mtu = choose_mtu(mtu, largest, where, network.name)
            fds.append(open_tun())
            attach(fds[0], _TAP, multi_queue=queues > 1)
            add_queues(fds, _TAP, queues)
            _address(network, guest)
            apply_script(_rules(network))
            dhcp = _serve(network)
        return PrivateTap(fds, guest_mtu, dhcp, guest.tap)
    except BaseException as error:
        if dhcp:
            dhcp.kill()
            dhcp.wait()
        for fd in fds:
            os.close(fd)
        if isinstance(error, OSError):
            raise BackendError(f"cannot set it up: {error.strerror}", where=where) from error
        if isinstance(error, BackendError) and not error.where:
            raise BackendError(f"cannot set it up: {error.what}", where=where, fix=error.fix) from error
        raise


@contextmanager
def _namespace() -> Iterator[int]:
    """Put the thread into a new network namespace for a while; the descriptor of the one outside."""
    outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            yield outside
        finally:
            _enter(outside)
    finally:
        os.close(outside)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _set(path: str, value: str) -> None:
    """Change a setting of the namespace; without IPv6 it may not be there."""
    with suppress(FileNotFoundError), open(f"/proc/sys/net/{path}", "w", encoding="ascii") as file:
        file.write(value)


def _connect(network: Nat, guest: Guest, outside: int) -> int:
    """Make the veth pair and put its other end on the bridge; the bridge's MTU."""
    inside = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(outside)
        try:
            with netlink() as routes:
                peer = {"ifname": _OUT, "address": guest.mac, "net_ns_fd": inside}
                bridge = find_device(routes, network.name)
                if bridge is None:
                    raise BackendError(
                        "its bridge is missing",
                        where=f"network {network.name}",
                        fix=f"run: sudo pyvmm net repair {network.name}",
                    )
                routes.link("add", ifname=guest.tap, kind="veth", peer=peer)
                join_bridge(guest.tap, network.name, routes)
                return int(bridge.get_attr("IFLA_MTU"))
        finally:
            _enter(inside)
    finally:
        os.close(inside)


def _address(network: Nat, guest: Guest) -> None:
    with netlink() as routes:
        tap, out = (find_device(routes, name)["index"] for name in (_TAP, _OUT))
        routes.link("set", index=tap, address=_GATEWAY_MAC, state="up")
        routes.addr("add", index=tap, address=GATEWAY, prefixlen=PREFIX)
        routes.link("set", index=out, state="up")
        routes.addr("add", index=out, address=str(guest.address), prefixlen=network.subnet.prefixlen)
        routes.route("add", dst="default", gateway=str(network.gateway), oif=out)


def _rules(network: Nat) -> str:
    return f"""
    table ip private {{
        chain from {{
            type nat hook prerouting priority dstnat
            iifname {_OUT} dnat to {GUEST}
            iifname {_TAP} ip daddr {GATEWAY} meta l4proto {{ tcp, udp }} th dport 53 dnat to {network.gateway}
        }}
        chain to {{ type nat hook postrouting priority srcnat; oifname {_OUT} masquerade; }}
        chain forward {{
            type filter hook forward priority filter
            iifname {_TAP} ip saddr != {GUEST} drop
        }}
    }}
    """


def _serve(network: Nat) -> subprocess.Popen[bytes]:
    """dnsmasq for DHCP alone; DNS is the network's. It ends with us: it may not change its user for that."""
    capabilities = "+net_bind_service,+net_raw,+net_admin"
    command = ["setpriv", "--pdeathsig=KILL", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    command += [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
    command += ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file", "--log-facility=/dev/null"]
    command += ["--port=0", f"--interface={_TAP}", "--bind-interfaces", "--leasefile-ro", "--no-ping"]
    command += ["--dhcp-authoritative", f"--dhcp-range={GUEST},{GUEST},255.255.255.0,1h", f"--domain={network.name}"]
    command += [f"--dhcp-option=option:dns-server,{GATEWAY}"]
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        raise BackendError("there is no setpriv", fix="run: sudo apt install util-linux") from None
