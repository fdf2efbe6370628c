"""Taps: what is said when there is none to be had. What works is in `tests/net`."""

from __future__ import annotations

import errno
import os

import pytest

from vmm.errors import BackendError, ConfigError
from vmm.host import tap
from vmm.host.tap import check_name, choose_mtu, open_tap, open_tun


def refuse_with(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(path: str, flags: int) -> int:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr("vmm.host.tap.os.open", refuse)


def test_no_device_node(monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]) -> None:
    monkeypatch.setattr(tap, "TUN_PATH", f"{tmp_path}/tun")
    with pytest.raises(BackendError) as caught:
        open_tun()
    assert str(caught.value) == (
        f"{tmp_path}/tun: cannot open: No such file or directory\n"
        "  run: sudo modprobe tun\n"
        "  if that changes nothing: sudo mkdir -p /dev/net && sudo mknod -m 666 /dev/net/tun c 10 200\n"
        "  in a container: start it with --device /dev/net/tun"
    )


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_no_permission(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    refuse_with(monkeypatch, code)
    with pytest.raises(BackendError) as caught:
        open_tun()
    assert str(caught.value) == (
        f"/dev/net/tun: cannot open: {os.strerror(code)}\n"
        "  run: sudo setfacl -m u:$USER:rw /dev/net/tun\n"
        "  in a container: start it with --device /dev/net/tun"
    )


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_with(monkeypatch, errno.ENODEV)
    with pytest.raises(BackendError, match="/dev/net/tun: cannot open: No such device\n  run: sudo modprobe tun"):
        open_tun()


@pytest.mark.parametrize("name", ["", "sixteen-letters-", "a b", "a/b", "a\0b", "é" * 8])
def test_impossible_names(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tap(name)
    assert str(caught.value) == (
        f"--net tap=: {name!r} cannot be the name of a network device\n"
        "  it must have 1 to 15 characters, no space and no slash; `ip -br link` lists the devices"
    )


def test_possible_names() -> None:
    for name in ("a", "fifteen-letters", "tap0.1"):
        check_name(name, "tap")


def test_mtu_defaults_to_the_largest() -> None:
    assert choose_mtu(None, 1500, "tap t", "t") == 1500
    assert choose_mtu(1400, 1500, "tap t", "t") == 1400


def test_a_missing_tap() -> None:
    with pytest.raises(BackendError, match="tap pyvmm-none: there is no such device"):
        open_tap("pyvmm-none")
