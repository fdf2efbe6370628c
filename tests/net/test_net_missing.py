"""A kernel without what a network needs: the message names it, and the host is as it was before."""

from __future__ import annotations

import errno
import os
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any, Self

import pyroute2
import pytest

from tests.net.managed import Host, state
from vmm.config import NetConfig, Rate
from vmm.errors import BackendError
from vmm.host.net import forwarding, guests, networks
from vmm.host.net.create import create_nat, create_physical
from vmm.host.net.join import join_here
from vmm.host.net.store import Store

pytestmark = pytest.mark.net

LIMIT = Rate(per_second=1 << 20, burst=1 << 20)


def lack(monkeypatch: pytest.MonkeyPatch, kind: str, code: int) -> None:
    """Let rtnetlink refuse to make *kind*, as a kernel does that was built without it."""
    real = pyroute2.IPRoute

    class Lacking:
        def __init__(self) -> None:
            self._routes = real()

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self._routes.close()

        def __getattr__(self, name: str) -> Any:
            def call(*command: Any, **arguments: Any) -> Any:
                if kind in (*command, arguments.get("kind")):
                    raise pyroute2.NetlinkError(code)
                return getattr(self._routes, name)(*command, **arguments)

            return call

    monkeypatch.setattr(pyroute2, "IPRoute", Lacking)


def lack_nftables(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Let nft say what it says on a kernel without nftables."""
    nft = directory / "nft"
    nft.write_text(
        "#!/bin/sh\necho 'netlink: Error: cache initialization failed: Protocol not supported' >&2; exit 1\n"
    )
    nft.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_no_bridges(host: Host, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(host)
    lack(monkeypatch, "bridge", errno.EOPNOTSUPP)
    with pytest.raises(BackendError) as caught:
        create_nat(store, "lab")
    assert str(caught.value) == (
        "create network lab: cannot make bridge lab: this kernel has no bridge\n"
        "  the host is as it was before\n  run: sudo modprobe bridge"
    )
    with pytest.raises(BackendError) as caught:
        create_physical(store, "lab", "up0", confirm_timeout_s=30)
    assert str(caught.value) == (
        "create network lab: cannot make bridge lab in place of up0: this kernel has no bridge\n"
        "  the host is as it was before\n  run: sudo modprobe bridge"
    )
    assert state(host) == before
    assert store.networks() == []


def test_no_nftables(host: Host, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = state(host)
    with monkeypatch.context() as patch:
        lack_nftables(patch, tmp_path)
        with pytest.raises(BackendError) as caught:
            create_nat(store, "lab")
    assert str(caught.value) == (
        "create network lab: cannot make nftables table inet pyvmm-lab: "
        "nft: netlink: Error: cache initialization failed: Protocol not supported\n"
        "  the host is as it was before\n"
        "  does this kernel have nf_tables? run: sudo modprobe nf_tables nft_masq"
    )
    assert state(host) == before


@pytest.mark.parametrize(("missing", "package"), [("nft", "nftables"), ("dnsmasq", "dnsmasq-base")])
def test_no_program(host: Host, store: Store, monkeypatch: pytest.MonkeyPatch, missing: str, package: str) -> None:
    for name in {"nft", "dnsmasq"} - {missing}:
        os.symlink(f"/usr/sbin/{name}", f"{host.directory}/{name}")
    before = state(host)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", host.directory)
        with pytest.raises(BackendError) as caught:
            create_nat(store, "lab")
    assert f"there is no {missing}\n" in str(caught.value)
    assert str(caught.value).endswith(f"  run: sudo apt install {package}")
    assert state(host) == before
    assert store.networks() == []


def test_no_token_bucket(host: Host, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    network = create_nat(store, "lab")
    before = state(host)
    lack(monkeypatch, "tbf", errno.ENOENT)
    with pytest.raises(BackendError) as caught:
        guests.attach(store, network, "web1", limit=LIMIT)
    assert str(caught.value) == (
        "attach web1 to network lab: cannot make limit of pyvmm-77eba3b9: this kernel has no tbf\n"
        "  the host is as it was before\n  run: sudo modprobe sch_tbf"
    )
    assert state(host) == before


def test_no_veth(host: Host, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    create_nat(store, "lab")
    lack(monkeypatch, "veth", errno.EOPNOTSUPP)
    with pytest.raises(BackendError, match="no veth") as caught:
        join_here(NetConfig(network="lab", private=True))
    assert str(caught.value) == (
        "network lab, private guest private1: cannot set it up: this kernel has no veth\n  run: sudo modprobe veth"
    )


def test_no_ipv6(host: Host, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = state(host)
    (tmp_path / "ipv4").symlink_to("/proc/sys/net/ipv4")
    monkeypatch.setattr(forwarding, "_SYS", str(tmp_path))
    with pytest.raises(BackendError, match="cannot make IPv6 forwarding: this kernel has no IPv6\n  the host is as"):
        create_nat(store, "lab", subnet6=IPv6Network("fd00:77::/64"))
    assert state(host) == before
    create_nat(store, "lab")
    networks.delete(store, "lab")
    assert state(host) == before
