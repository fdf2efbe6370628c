"""What the user typed: every mistake is exit code 2, and told with where it is and what would be right."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Pyvmm
from vmm import __version__


def test_version(pyvmm: Pyvmm) -> None:
    run = pyvmm("--version")
    assert (run.code, run.output, run.messages) == (0, f"pyvmm {__version__}\n", "")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_options_verbs_keys_and_exit_codes(pyvmm: Pyvmm, flag: str) -> None:
    run = pyvmm(flag)
    assert (run.code, run.messages) == (0, "")
    assert run.output.startswith("usage: pyvmm --kernel FILE [--disk IMAGE] [options]\n")
    for told in ("--kernel FILE", "--no-reboot", "pyvmm doctor", "120 guest panic", "Ctrl-A x"):
        assert told in run.output


def test_help_fits_a_terminal(pyvmm: Pyvmm) -> None:
    assert max(map(len, pyvmm("--help").output.splitlines())) <= 120


def test_no_kernel(pyvmm: Pyvmm) -> None:
    run = pyvmm()
    assert run.code == 2
    assert run.messages == (
        "pyvmm: --kernel: no kernel is given\n  pyvmm --kernel FILE; pyvmm --help lists all options\n"
    )


#: Arguments after `--kernel k`, and what they bring: the message without its "pyvmm: ".
MISTAKES = {
    "an unknown option": (["--cpu", "2"], "--cpu: there is no such option\n  pyvmm --help lists them all"),
    "no option at all": (["image.img"], "image.img: there is no such option\n  pyvmm --help lists them all"),
    "an option twice": (["-c", "1", "--cpus", "2"], "--cpus: is given twice"),
    "a value missing": (["--disk"], "--disk: its value is missing\n  --disk IMAGE[,readonly][,cache=…]"),
    "a value too many": (["--no-reboot=yes"], "--no-reboot: takes no value"),
    "memory in words": (["--memory", "lots"], "--memory: 'lots' is no size\n  such as 512M or 2G"),
    "memory negative": (["--memory", "-1G"], "--memory: '-1G' is no size\n  such as 512M or 2G"),
    "memory empty": (["--memory", ""], "--memory: '' is no size\n  such as 512M or 2G"),
    "memory as a fraction": (["-m", "1.5G"], "--memory: '1.5G' is no size\n  such as 512M or 2G"),
    "memory too small": (["--memory", "15M"], "--memory: 15 MiB is not within 16 MiB … 4 TiB"),
    "memory in odd pages": (
        ["--memory", "16385K"],
        "--memory: 16778240 bytes are no whole number of pages of 4 KiB",
    ),
    "memory beyond all": (["--memory", "5T"], "--memory: 5242880 MiB is not within 16 MiB … 4 TiB"),
    "cpus in words": (["--cpus", "two"], "--cpus: 'two' is no whole number"),
    "no cpus": (["--cpus", "0"], "--cpus: 0 is not within 1 … 64"),
    "too many cpus": (["--cpus", "65"], "--cpus: 65 is not within 1 … 64"),
    "boot": (["--boot", "uefi"], "--boot: 'uefi' is no way to boot\n  auto, bzimage, elf, pvh"),
    "timeout in words": (["--timeout", "soon"], "--timeout: 'soon' is no number of seconds"),
    "timeout nan": (["--timeout", "nan"], "--timeout: 'nan' is no number of seconds"),
    "timeout zero": (["--timeout", "0"], "--timeout: must be more than 0 and at most "),
    "timeout infinite": (["--timeout", "inf"], "--timeout: 'inf' is no number of seconds"),
    "trace": (["--trace", "pio,irq"], "--trace: irq cannot be traced\n  one of exits, pio, mmio, virtio, assist"),
    "serial": (["--serial", "pty"], "--serial: 'pty' is no serial port\n  stdio, quiet, file:PATH or null"),
    "serial without a file": (
        ["--serial", "file:"],
        "--serial: file: names no file\n  such as --serial file:guest.log",
    ),
    "disk without an image": (["--disk", ",readonly"], "--disk: names no image\n  such as --disk root.img"),
    "disk option unknown": (
        ["--disk", "a.img,ro"],
        "--disk: 'ro' is unknown\n  known are readonly, serial=…",
    ),
    "disk option without value": (["--disk", "a.img,serial"], "--disk: 'serial' is written serial=VALUE"),
    "disk option with value": (["--disk", "a.img,readonly=1"], "--disk: 'readonly=1' is written readonly"),
    "disk option twice": (["--disk", "a.img,readonly,readonly"], "--disk: readonly is given twice"),
    "net of neither kind": (
        ["--net", "mtu=1500"],
        "--net: needs one of NETWORK, bridge=NAME, tap=NAME, lan=NAME, user and auto\n  such as --net bridge=br0",
    ),
    "net of both kinds": (
        ["--net", "bridge=a,tap=b"],
        "--net: needs one of NETWORK, bridge=NAME, tap=NAME, lan=NAME, user and auto\n  such as --net bridge=br0",
    ),
    "net of another kind": (["--net", "vhost=x"], "--net: 'vhost=x' is unknown\n  known are user, auto, name=…"),
    "net mac": (["--net", "tap=t,mac=52:54"], "--net: "),
    "net multicast mac": (["--net", "tap=t,mac=01:00:5e:00:00:01"], "--net: "),
    "net mtu in words": (["--net", "tap=t,mtu=big"], "--net: 'big' is no number\n  such as mtu=1500"),
    "net mtu": (["--net", "tap=t,mtu=10"], "--net: mtu=10 is not within 68 … 65535"),
    "name": (["--name", "a/b"], "--name: 'a/b' cannot be the name of a VM\n  1 to 63 letters, digits, dots, "),
    "too many devices": (
        ["--disk", "a.img"] * 15,
        "--disk, --net: 15 disks and 0 network cards are 1 too many for one machine",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(pyvmm: Pyvmm, mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    run = pyvmm("--kernel", "k", *arguments)
    assert run.code == 2
    assert run.messages.startswith(f"pyvmm: {message}")


def test_no_such_verb(pyvmm: Pyvmm) -> None:
    run = pyvmm("frobnicate")
    assert (run.code, run.messages) == (2, "pyvmm: frobnicate: there is no such verb\n  pyvmm --help lists them all\n")


def test_a_path_that_begins_like_an_option_can_be_given(pyvmm: Pyvmm) -> None:
    assert pyvmm("--kernel=--odd").messages.startswith("pyvmm: --odd: there is no such kernel file")


@pytest.mark.kvm
def test_run_may_be_said(pyvmm: Pyvmm) -> None:
    assert pyvmm("run", "--kernel", "missing").messages.startswith("pyvmm: missing: there is no such kernel file")
