"""A host for managed networks: what is around it, what it is like, and guests by the other end of a veth pair."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.waiting import until

from .namespace import await_carrier, await_own_address, ip, links, network_namespace, sysctl

#: Prints what it was given, and uses it.
_LEASE_SCRIPT = """\
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface" && ip route add default via "$router"
echo "$ip $router $dns $domain"
"""
#: Of `ip -json` and `nft --json`, what changes by itself.
_VOLATILE = {
    *("valid_life_time", "preferred_life_time", "ifindex", "link_index", "expires", "stats64", "stats", "handle"),
    *("hello_timer", "tcn_timer", "topology_change_timer", "gc_timer", "tso_max_size", "tso_max_segs"),
    "operstate",  # and the flags below follow a carrier up to a second later (net/core/link_watch.c)
}
_VOLATILE_FLAGS = {"NO-CARRIER", "LOWER_UP", "linkdown"}
#: Of the sysctls, what counts, or is made up by itself.
_NO_SETTINGS = {"nf_conntrack_count", "tcp_fastopen_key"}


class Namespace:
    """Another network namespace: of a guest, or of a router."""

    def __init__(self) -> None:
        with network_namespace():
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            ip("link set lo up")
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def command(self, command: str) -> list[str]:
        """What runs *command*, of the shell's, here."""
        return ["nsenter", f"--net={self.path}", "sh", "-c", command]

    def run(self, command: str) -> str:
        """What *command* prints."""
        done = subprocess.run(self.command(command), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def pings(self, address: str, options: str = "", tries: int = 5) -> bool:
        """Whether *address* answers to one of *tries* echo requests, one a second."""
        command = f"busybox ping -c {tries} -A -W 1 {options} {address}"
        code = subprocess.run(self.command(command), capture_output=True, check=False, timeout=60).returncode
        assert code in (0, 1)
        return code == 0

    def close(self) -> None:
        os.close(self._fd)


class Host:
    """The namespace of the test: an uplink to a router, and a directory for what pyvmm knows."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.hosts = os.path.join(directory, "hosts")
        with open(self.hosts, "w") as file:
            file.write("127.0.0.1\tlocalhost\n")
        self._script = os.path.join(directory, "lease")
        with open(self._script, "w") as file:
            file.write(_LEASE_SCRIPT)
        os.chmod(self._script, 0o755)
        self.router = Namespace()
        self._guests: list[Namespace] = []
        ip("link set lo up")
        ip(f"link add up0 type veth peer name down0 netns {self.router.path}")
        ip("address add 192.0.2.2/24 dev up0")
        with open("/proc/sys/net/ipv6/conf/up0/accept_dad", "w") as file:
            file.write("0")  # or its own address is tentative for a second
        ip("link set up0 up")
        self.router.run(
            "ip address add 192.0.2.1/24 dev down0; ip address add 198.51.100.1/32 dev lo; ip link set down0 up"
        )
        await_carrier("up0")  # only then, and some time later, does it give itself an address
        await_own_address("up0")
        ip("route add default via 192.0.2.1")

    def guest(self, bridge: str, mac: str = "", name: str = "") -> Namespace:
        """A guest with a card on *bridge*, down; the port is *name*, or ``g1``, ``g2`` …"""
        guest = Namespace()
        self._guests.append(guest)
        name = name or f"g{len(self._guests)}"
        address = f"address {mac}" if mac else ""
        ip(f"link add {name} type veth peer name eth0 {address} netns {guest.path}")
        ip(f"link set {name} master {bridge} up")
        return guest

    def lease(self, guest: Namespace) -> list[str]:
        """Let *guest* ask for an address: its own, the router's, the name server's, and the domain."""
        guest.run("ip link set eth0 up")
        client = f"busybox udhcpc -i eth0 -n -q -f -t 10 -T 1 -s {self._script} 2>&1"
        return guest.run(client).splitlines()[-1].split()

    def names(self) -> str:
        """Its table of names."""
        with open(self.hosts) as file:
            return file.read()

    def close(self) -> None:
        for namespace in [self.router, *self._guests]:
            namespace.close()


@contextmanager
def host(directory: str) -> Iterator[Host]:
    """A host in a network namespace of its own."""
    os.chmod(directory, 0o755)  # dnsmasq is an ordinary user
    with network_namespace():
        made = Host(directory)
        try:
            yield made
        finally:
            made.close()


def state(host_: Host) -> dict[str, Any]:
    """All of the host's network that a person could look at, once its uplinks have come to rest."""
    for device in links():
        if device.startswith("up") and sysctl(f"net/ipv6/conf/{device}/disable_ipv6") == "0":
            await_own_address(device)
    until(lambda: not ip("-6 address show tentative"))
    return {
        "links": _sorted(_ip("-details link show")),
        "addresses": _sorted(_ip("address show")),
        "routes": _sorted(_ip("-4 route show table all")) + _sorted(_ip("-6 route show table all")),
        "rules": _ip("-4 rule show") + _ip("-6 rule show"),
        "nft": _nft(),
        "sysctls": sysctls(),
        "hosts": host_.names(),
        "processes": servers(host_),
    }


def sysctls() -> dict[str, str]:
    """All settings of the network."""
    found = {}
    for directory, _, files in os.walk("/proc/sys/net"):
        for name in files:
            if name in _NO_SETTINGS:
                continue
            path = os.path.join(directory, name)
            try:
                with open(path) as file:
                    found[path] = file.read()
            except OSError:  # write-only, or of an IPv6 that is still to be made up
                continue
    return found


def servers(host_: Host) -> list[int]:
    """The processes that run for networks of *host_*."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if os.fsencode(f"{host_.directory}/net/") in file.read():
                    found.append(int(pid))
        except OSError:
            continue
    return found


def _ip(arguments: str) -> list[Any]:
    return [_steady(entry) for entry in json.loads(ip(f"-json {arguments}") or "[]")]


def _nft() -> list[Any]:
    done = subprocess.run(["nft", "--json", "list", "ruleset"], check=True, capture_output=True, text=True)
    return [_steady(entry) for entry in json.loads(done.stdout)["nftables"]]


def _steady(entry: Any) -> Any:
    """*entry* without counters, lifetimes and numbers that the kernel gives in turn."""
    if isinstance(entry, dict):
        return {key: _steady(value) for key, value in entry.items() if key not in _VOLATILE}
    return (
        [_steady(value) for value in entry if str(value) not in _VOLATILE_FLAGS] if isinstance(entry, list) else entry
    )


def _sorted(entries: list[Any]) -> list[Any]:
    return sorted(entries, key=lambda entry: json.dumps(entry, sort_keys=True))
