"""Rows of `bench/io --linux`: Debian's fio and iperf3 in the micro guest, for the record.

QEMU cannot boot a Linux on the CI host, so there is no peer. Where ring 0 is interpreted it is the guest's kernel that
they measure.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bench import network, pyvmm
from bench.boot_rows import PROMPT, Image
from bench.command import say
from bench.compiled import compiled
from bench.errors import BenchError
from bench.report import Row
from bench.running import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_HOST, _GUEST = "10.0.0.1", "10.0.0.2"
_DISK_MIB = 256
_SECONDS = 5
_TIMEOUT_S = 900.0
#: The second disk, where a dynamic program and its libraries are run by their own loader.
_TOOLS = "/tools"
_LOADER = f"{_TOOLS}/ld-linux-x86-64.so.2 --library-path {_TOOLS}"
_JOBS = f"""\
[global]
filename=/dev/vdc
ioengine=psync
thread
direct=1
time_based
runtime={_SECONDS}
group_reporting
gtod_reduce=1
disk_util=0
stonewall
[randread]
rw=randread
bs=4k
numjobs=32
[seqread]
rw=read
bs=1M
[randwrite]
rw=randwrite
bs=4k
numjobs=32
"""
_TERSE = "--output-format=terse --terse-version=3"
#: Fields of fio's terse output, version 3, from 0 on.
_READ_KIB, _READ_IOPS, _WRITE_IOPS = 6, 7, 48


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise BenchError(f"there is no {name} to run in the guest", fix=f"sudo apt install {name}")
    return found


def _tools(scratch: str) -> str:
    """A disk with the host's fio and iperf3 and all that they load."""
    tree, image = os.path.join(scratch, "tools"), os.path.join(scratch, "tools.img")
    os.mkdir(tree)
    for program in map(_program, ("fio", "iperf3")):
        linked = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for path in (program, *re.findall(r"(/\S+) \(0x", linked)):
            shutil.copy(path, tree)
    memory = compiled("shm.so", ["host/shm.c"], ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"])
    shutil.copy(memory, os.path.join(tree, "shm.so"))
    with open(os.path.join(tree, "jobs"), "w", encoding="ascii") as file:
        file.write(_JOBS)
    with open(image, "wb") as file:
        file.truncate(256 << 20)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-d", tree, image]
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    subprocess.run(command, env=environment, check=True)
    return image


@contextmanager
def _guest() -> Iterator[Running]:
    """The micro guest at its prompt, with the tools, a disk in the host's page cache and a card on a tap."""
    image = Image("micro")
    with tempfile.TemporaryDirectory(prefix="pyvmm-bench-") as scratch, network.tap():
        network.ip(f"address add {_HOST}/24 dev {network.TAP}")
        root, data = (os.path.join(scratch, name) for name in ("root.img", "data.img"))
        image.copy_root(root)
        with open(data, "wb") as file:
            file.writelines(os.urandom(1 << 20) for _ in range(_DISK_MIB))
        command = [
            pyvmm.path(), *pyvmm.options,
            "--kernel", image.kernel,
            "--append", f"console=ttyS0 root=/dev/vda rw quiet ip={_GUEST}::{_HOST}:255.255.255.0::eth0:off",
            "--memory", "256M",
            "--disk", root, "--disk", f"{_tools(scratch)},readonly", "--disk", data,
            *pyvmm.net_options(network.TAP, network.MAC),
        ]  # fmt: skip
        with Running(command) as vmm:
            vmm.wait_for(PROMPT, _TIMEOUT_S)
            _run(vmm, f"mkdir {_TOOLS} && mount -r /dev/vdb {_TOOLS}")
            yield vmm


def _run(vmm: Running, command: str) -> str:
    """What *command* prints in the guest. Raises `BenchError` if it fails."""
    # The quotes keep the echo of what is typed from looking like what is printed.
    vmm.type(f"echo be''gin; {command}; echo en''d=$?\n".encode())
    match = vmm.wait_for(rb"(?s)begin\r*\n(.*)end=(\d+)\r*\n", _TIMEOUT_S)[1]
    printed = match[1].decode(errors="replace")
    if int(match[2]):
        raise BenchError(f"{command} failed in the guest:\n{printed}")
    return printed


def _fio(vmm: Running) -> list[float]:
    printed = _run(vmm, f"LD_PRELOAD={_TOOLS}/shm.so {_LOADER} {_TOOLS}/fio {_TERSE} {_TOOLS}/jobs")
    jobs = {fields[2]: fields for line in printed.splitlines() if len(fields := line.split(";")) > _WRITE_IOPS}
    read, sequential, write = (jobs[name] for name in ("randread", "seqread", "randwrite"))
    return [float(read[_READ_IOPS]), float(sequential[_READ_KIB]) / 1024, float(write[_WRITE_IOPS])]


def _iperf(vmm: Running, *options: str) -> float:
    """Mb/s that the receiver counts."""
    with subprocess.Popen(["iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            server.stdout.readline()
            server.stdout.readline()  # it listens
            command = [_LOADER, f"{_TOOLS}/iperf3", "-c", _HOST, "-t", str(_SECONDS), "-f", "k", *options]
            printed = _run(vmm, " ".join(command))
        finally:
            server.kill()
    found = re.search(r"([\d.]+) Kbits/sec +receiver", printed)
    if found is None:
        raise BenchError(f"iperf3 in the guest printed no rate:\n{printed}")
    return float(found[1]) / 1e3


def _samples(name: str, runs: int, measure: Callable[[Running], list[float]]) -> list[list[float]]:
    """The figures of *measure*, one boot a run."""
    samples = []
    for turn in range(runs):
        say(f"{name}: {turn} of {runs}")
        with _guest() as vmm:
            samples.append(measure(vmm))
    return [list(figures) for figures in zip(*samples, strict=True)]


def fio(runs: int) -> list[Row]:
    """fio's threads on a virtio disk."""
    read, sequential, write = _samples("fio", runs, _fio)
    clock = f"fio's psync and O_DIRECT for {_SECONDS} s in a Linux guest; {_DISK_MIB} MiB in the host's page cache"
    many, one = f"32 threads of {clock}", f"one thread of {clock}"
    return [
        Row("fio, 4 KiB random reads", "1/s", many, None, read),
        Row("fio, 1 MiB sequential read", "MiB/s", one, None, sequential),
        Row("fio, 4 KiB random writes", "1/s", many, None, write),
    ]


def iperf(runs: int) -> list[Row]:
    """iperf3 over a tap."""
    out, into = _samples("iperf3", runs, lambda vmm: [_iperf(vmm), _iperf(vmm, "-R")])
    clock = f"iperf3 between a Linux guest and the host, one TCP stream for {_SECONDS} s, what its receiver counts"
    return [Row("iperf3, out", "Mb/s", clock, None, out), Row("iperf3, in", "Mb/s", clock, None, into)]


ROWS: dict[str, Callable[[int], list[Row]]] = {"fio": fio, "iperf3": iperf}
RUNS = dict.fromkeys(ROWS, 1)
