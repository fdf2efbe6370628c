"""Configuration: what the texts of the command line mean, and what cannot be."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.config import (
    CPUS_MAX,
    MEMORY_MAX,
    MEMORY_MIN,
    TIMEOUT_MAX_S,
    VLAN_TRUNK,
    DiskConfig,
    Forward,
    MachineConfig,
    NetConfig,
    NetLimits,
    Rate,
    VsockConfig,
    parse_disk,
    parse_net,
    parse_size,
    parse_trace,
    parse_vsock,
)
from vmm.errors import ConfigError
from vmm.layout import PCI_SLOTS, VIRTIO_GSIS

KIB, MIB, GIB, TIB = (1 << shift for shift in (10, 20, 30, 40))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 * MIB),
        ("16384K", 16384 * KIB),
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("512MB", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("2G", 2 * GIB),
        ("1T", TIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1M", "+1M", "1 G", "0x10M", "1P", "MM", "١M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size") as caught:
        parse_size(text)
    assert caught.value.where == "--memory"


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_size(text) >= 0


# Disks.


@pytest.mark.parametrize(
    ("text", "disk"),
    [
        ("root.img", DiskConfig(path="root.img")),
        ("root.img,readonly", DiskConfig(path="root.img", readonly=True)),
        ("root.img,serial=a b,readonly", DiskConfig(path="root.img", readonly=True, serial="a b")),
        ("a,,b.img", DiskConfig(path="a,b.img")),
        ("a,,,readonly", DiskConfig(path="a,", readonly=True)),
        ("a.img,serial=x=y", DiskConfig(path="a.img", serial="x=y")),
        ("a.img,serial=x,,y", DiskConfig(path="a.img", serial="x,y")),
        ("a,cache=none,discard=off,queues=4", DiskConfig(path="a", cache="none", discard=False, queues=4)),
        ("a,snapshot=on", DiskConfig(path="a", snapshot=True)),
        ("overlay=w.cow", DiskConfig(path="w.cow", overlay=True)),
        ("overlay=w.cow,base=a,,b", DiskConfig(path="w.cow", overlay=True, base="a,b")),
        ("overlay=w.cow,snapshot=on,serial=x", DiskConfig(path="w.cow", overlay=True, snapshot=True, serial="x")),
        ("./overlay=w,snapshot=off", DiskConfig(path="./overlay=w")),
        ("a,werror=stop,cache=unsafe", DiskConfig(path="a", werror="stop", cache="unsafe")),
        (
            "a,iops=1000,bw=10M/50M",
            DiskConfig(
                path="a",
                iops=Rate(per_second=1000, burst=100),
                bw=Rate(per_second=10 * MIB, burst=50 * MIB),
            ),
        ),
    ],
)
def test_disks(text: str, disk: DiskConfig) -> None:
    assert parse_disk(text) == disk


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",readonly",
        "a,cache=writethrough",
        "a,cache",
        "a,discard=maybe",
        "a,queues=0",
        "a,queues=17",
        "a,queues=-1",
        "a,werror=enospc",
        "a,size=1G",
        "overlay=",
        "a,base=b",
        "a,snapshot=yes",
        "a,snapshot=on,readonly",
        "a,snapshot=on,cache=none",
        "overlay=a,cache=none",
    ],
)
def test_what_is_no_disk(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_disk(text)
    assert caught.value.where == "--disk"


@given(st.text(min_size=1, max_size=30).filter(lambda path: "\0" not in path and not path.startswith("overlay=")))
def test_any_path_can_be_written(path: str) -> None:
    assert parse_disk(path.replace(",", ",,")) == DiskConfig(path=path)


# Network cards.


def forward(protocol: str, address: str, host_port: int, guest_port: int) -> Forward:
    return Forward(protocol=protocol, address=address, host_port=host_port, guest_port=guest_port)


@pytest.mark.parametrize(
    ("text", "net"),
    [
        ("bridge=br0", NetConfig(bridge="br0")),
        ("lab", NetConfig(network="lab")),
        ("lab,name=a,private=yes", NetConfig(network="lab", name="a", private=True)),
        ("nat,private=yes", NetConfig(network="nat", private=True)),
        ("lab,name=web1,queues=2", NetConfig(network="lab", name="web1", queues=2)),
        ("tap=tap0,mtu=9000", NetConfig(tap="tap0", mtu=9000)),
        ("bridge=br0,mac=52:54:00:00:00:01", NetConfig(bridge="br0", mac=bytes.fromhex("525400000001"))),
        ("tap=tap0,queues=4", NetConfig(tap="tap0", queues=4)),
        ("lan=lab", NetConfig(lan="lab")),
        ("lan=lab,vlan=5,pcap=a.pcap,mtu=9000", NetConfig(lan="lab", vlan=5, pcap="a.pcap", mtu=9000)),
        ("lan=lab,vlan=trunk", NetConfig(lan="lab", vlan=VLAN_TRUNK)),
        ("user", NetConfig(user=True)),
        ("user,hostfwd=tcp:2222-:22", NetConfig(user=True, forwards=(forward("tcp", "127.0.0.1", 2222, 22),))),
        (
            "user,hostfwd=udp:0.0.0.0:53-:53,mtu=1500,hostfwd=tcp::80-:8080",
            NetConfig(
                user=True,
                mtu=1500,
                forwards=(forward("udp", "0.0.0.0", 53, 53), forward("tcp", "127.0.0.1", 80, 8080)),
            ),
        ),
        ("auto,mtu=1400", NetConfig(auto=True, mtu=1400)),
        (
            "tap=tap0,rx_bw=10M/50M,tx_pps=1000",
            NetConfig(
                tap="tap0",
                limits=NetLimits(
                    rx_bw=Rate(per_second=10 * MIB, burst=50 * MIB), tx_pps=Rate(per_second=1000, burst=100)
                ),
            ),
        ),
    ],
)
def test_cards(text: str, net: NetConfig) -> None:
    assert parse_net(text) == net


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name=web1",
        "lab,name=a,private=perhaps",
        "bridge=br0,private=yes",
        "bridge=br0,name=web1",
        "lab,bridge=br0",
        "lab,lab2",
        "bridge",
        "bridge=",
        "bridge=a,tap=b",
        "tap=t,mtu=-1",
        "tap=t,mtu=65536",
        "tap=t,queues=0",
        "tap=t,queues=17",
        "tap=t,queues=two",
        "lan",
        "lan=x,vlan=4095",
        "lan=x,vlan=native",
        "lan=x,queues=2",
        "lan=x,user",
        "tap=t,vlan=5",
        "tap=t,pcap=x",
        "user=x",
        "user,queues=2",
        "user,hostfwd",
        "tap=t,hostfwd=tcp:2222-:22",
        "auto,hostfwd=tcp:2222-:22",
    ],
)
def test_what_is_no_card(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_net(text)
    assert caught.value.where == "--net"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tcp",
        "tcp:22",
        "tcp:22-22",
        "icmp:22-:22",
        "tcp:0-:22",
        "tcp:22-:65536",
        "tcp:localhost:22-:22",
        "tcp:1.2.3:22-:22",
        "tcp:1.2.3.256:22-:22",
        "tcp:22,23-:22",
        "tcp:22-:22/x",
    ],
)
def test_what_is_no_forwarded_port(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_net(f"user,hostfwd={text}")
    assert (caught.value.where or "").startswith("--net")


@pytest.mark.parametrize("text", ["0", "", "x", "-1", "1.5M", "10M/", "10M/0", "/5", "10M/5/5", "1T", "1234567890"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_net(f"tap=t,tx_bw={text}")
    assert (caught.value.where or "").startswith("--net")


# Machines.


def test_trace_kinds() -> None:
    assert parse_trace("pio,mmio") == frozenset({"pio", "mmio"})
    assert parse_trace("") == frozenset()


@pytest.mark.parametrize(
    ("field", "good"),
    [
        ("cpus", [1, CPUS_MAX]),
        ("memory_bytes", [MEMORY_MIN, MEMORY_MAX, MEMORY_MIN + 4096]),
        ("timeout_s", [None, 0.001, TIMEOUT_MAX_S]),
        ("serial", ["stdio", "null", "file:x", "file:a,b"]),
        ("transport", ["mmio", "pci"]),
        ("engine", [None, "native", "python"]),
        ("console", ["serial", "virtio"]),
        ("disks", [(DiskConfig(path="a"),) * (len(VIRTIO_GSIS) - 1)]),
    ],
)
def test_what_can_be(field: str, good: list[Any]) -> None:
    for value in good:
        assert getattr(MachineConfig(kernel="k", **{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "bad", "where"),
    [
        ("cpus", [0, -1, CPUS_MAX + 1], "--cpus"),
        ("memory_bytes", [0, MEMORY_MIN - 4096, MEMORY_MIN + 1, MEMORY_MAX + 4096], "--memory"),
        ("timeout_s", [0.0, -1.0, float("nan"), float("inf")], "--timeout"),
        ("serial", ["", "pty", "file:", "stdout"], "--serial"),
        ("boot", ["", "uefi"], "--boot"),
        ("transport", ["", "ccw"], "--transport"),
        ("engine", ["", "c"], "--engine"),
        ("console", ["", "vga"], "--console"),
        ("trace", [frozenset({"pio", "irq"})], "--trace"),
        ("disks", [(DiskConfig(path="a"),) * len(VIRTIO_GSIS)], "--disk, --net"),
    ],
)
def test_what_cannot_be(field: str, bad: list[Any], where: str) -> None:
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            MachineConfig(kernel="k", **{field: value})
        assert caught.value.where == where


def test_a_pci_bus_has_room_for_more_devices() -> None:
    disks = (DiskConfig(path="a"),) * (PCI_SLOTS - 1)
    MachineConfig(kernel="k", transport="pci", disks=disks)
    with pytest.raises(ConfigError, match="1 too many") as caught:
        MachineConfig(kernel="k", transport="pci", disks=(*disks, DiskConfig(path="b")))
    assert caught.value.where == "--disk, --net"


def test_a_configuration_is_frozen_and_comparable() -> None:
    config = MachineConfig(kernel="k")
    assert config == MachineConfig(kernel="k")
    assert config != MachineConfig(kernel="other")
    assert hash(config) == hash(MachineConfig(kernel="k"))
    with pytest.raises(AttributeError):
        config.cpus = 2  # type: ignore[misc]


# Sockets.


@pytest.mark.parametrize(
    ("text", "path", "cid"),
    [
        ("guest.sock", "guest.sock", 3),
        ("auto", "", 3),
        ("a,,b,cid=4294967294", "a,b", 0xFFFF_FFFE),
        ("auto,cid=7", "", 7),
    ],
)
def test_vsock(text: str, path: str, cid: int) -> None:
    assert parse_vsock(text) == VsockConfig(path=path, cid=cid)


@pytest.mark.parametrize("text", ["", ",cid=3", "a,cid=2", "a,cid=4294967295", "a,cid=x", "a,cid", "a,uid=3"])
def test_vsock_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError, match="--vsock"):
        parse_vsock(text)


def test_vsock_takes_the_place_of_a_device() -> None:
    disks = tuple(DiskConfig(path=str(number)) for number in range(len(VIRTIO_GSIS) - 1))
    MachineConfig(kernel="k", disks=disks)
    with pytest.raises(ConfigError, match="1 too many"):
        MachineConfig(kernel="k", disks=disks, vsock=VsockConfig())
