"""`bench/boot`: start, memory and port I/O with a tiny guest beside QEMU's microvm, and real kernels to a shell."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from bench import guests, pyvmm, qemu
from bench.command import Bench, in_turn, say
from bench.errors import BenchError
from bench.report import Row
from bench.running import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MEMORY_MIB = 128
DEBIAN_MEMORY_MIB = 256
PIO_READS = 20_000
RING0_INSTRUCTIONS = 1_000_000
_IDLE_S = 0.5
_TINY_TIMEOUT_S = 60.0
_SHELL_TIMEOUT_S = 900.0
PROMPT = rb"root@[^\r\n]*# "
_SYSCALLS = rb"getppid_ns (\d+)\s+touch_ns (\d+)"

#: How often each row is measured unless `--runs` says otherwise. The stock kernel takes minutes each time.
RUNS = {"start": 20, "pss": 10, "pio": 10, "ring0": 10, "micro": 10, "getppid": 10, "touch": 10, "debian": 1}


# -- a tiny guest, beside the peer -----------------------------------------------------------------------------------


def _side_by_side(
    name: str, runs: int, kernel: str, measure: Callable[[Sequence[str]], float]
) -> tuple[list[float], list[float]]:
    own, peer = in_turn(name, runs, [pyvmm.command(kernel, MEMORY_MIB), qemu.command(kernel, MEMORY_MIB)], measure)
    return own, peer


def _start_ms(command: Sequence[str]) -> float:
    with Running(command) as vmm:
        return (vmm.wait_for(b"a", _TINY_TIMEOUT_S)[0] - vmm.started) * 1e3


def _pss_mib(command: Sequence[str]) -> float:
    with Running(command) as vmm:
        vmm.wait_for(b"a", _TINY_TIMEOUT_S)
        time.sleep(_IDLE_S)
        return vmm.pss_mib()


def _work_s(command: Sequence[str]) -> float:
    with Running(command) as vmm:
        begun, _ = vmm.wait_for(b"a", _TINY_TIMEOUT_S)
        ended, _ = vmm.wait_for(b"b", _TINY_TIMEOUT_S)
        return ended - begun


def _pio_us(command: Sequence[str]) -> float:
    return _work_s(command) / PIO_READS * 1e6


def _ring0_ns(command: Sequence[str]) -> float:
    return _work_s(command) / RING0_INSTRUCTIONS * 1e9


def _start(runs: int) -> list[Row]:
    own, peer = _side_by_side("start", runs, guests.tiny(), _start_ms)
    clock = "from just before the process is spawned until the guest's first serial byte is read from its stdout"
    return [Row("process start to first serial byte", "ms", clock, 1.2, own, qemu.version(), peer)]


def _pss(runs: int) -> list[Row]:
    own, peer = _side_by_side("pss", runs, guests.tiny(), _pss_mib)
    clock = (
        f"PSS of the process {_IDLE_S:g} s after the first serial byte, the guest idle in HLT; {MEMORY_MIB} MiB of "
        "guest RAM on both sides, of which what was touched is included"
    )
    return [Row("PSS, guest idle", "MiB", clock, 0.8, own, qemu.version(), peer)]


def _pio(runs: int) -> list[Row]:
    own, peer = _side_by_side("pio", runs, guests.tiny(f"READS={PIO_READS}"), _pio_us)
    clock = (
        f"from the byte before to the byte after {PIO_READS} reads of the UART's scratch register (port 0x3ff) in the "
        "guest, as they are read from stdout, divided by the reads"
    )
    return [Row("PIO round trip", "us", clock, 1.1, own, qemu.version(), peer)]


def _ring0(runs: int) -> list[Row]:
    kernel = guests.tiny(f"LOOPS={RING0_INSTRUCTIONS // 2}")
    own, peer = _side_by_side("ring0", runs, kernel, _ring0_ns)
    clock = (
        f"from the byte before to the byte after a loop of {RING0_INSTRUCTIONS} instructions (DEC, JNZ) in ring 0, "
        "divided by them: what the host's KVM gives any VMM, and what every boot of a Linux below is made of"
    )
    return [Row("an instruction in ring 0", "ns", clock, 1.1, own, qemu.version(), peer)]


# -- real kernels to a shell -----------------------------------------------------------------------------------------


class Image:
    """An image of `images/NAME/build`, built if need be."""

    def __init__(self, name: str) -> None:
        recipe = os.path.join(pyvmm.REPOSITORY, "images", name, "build")
        done = subprocess.run([recipe], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise BenchError(f"images/{name}/build failed")
        self.directory = done.stdout.strip().split("\n")[-1]
        with open(os.path.join(self.directory, "manifest.json"), encoding="utf-8") as file:
            self._manifest = json.load(file)

    @property
    def kernel(self) -> str:
        """The kernel file."""
        return os.path.join(self.directory, self._manifest["kernel"][0])

    def copy_root(self, target: str) -> None:
        """Make *target* a copy of the image's root disk."""
        source = os.path.join(self.directory, self._manifest["root"])
        subprocess.run(["cp", "--sparse=always", source, target], check=True)
        os.chmod(target, 0o600)

    def command(self, root: str) -> list[str]:
        """pyvmm with this image's kernel and *root*, a copy of its root disk; the stock kernel needs its initrd too."""
        manifest, directory = self._manifest, self.directory
        initrd = ["--initrd", os.path.join(directory, manifest["initrd"])] if manifest["name"] == "debian" else []
        return [
            pyvmm.path(), *pyvmm.options,
            "--kernel", self.kernel,
            *initrd,
            "--append", manifest["append"],
            "--memory", f"{MEMORY_MIB if not initrd else DEBIAN_MEMORY_MIB}M",
            "--disk", root,
        ]  # fmt: skip

    def boots(self, name: str, runs: int, at_prompt: Callable[[Running, float], float]) -> list[float]:
        """Boot to the prompt *runs* times; what *at_prompt* makes of each VM and its seconds to the prompt."""
        samples = []
        with tempfile.TemporaryDirectory(prefix="pyvmm-bench-") as scratch:
            root = os.path.join(scratch, "root.img")
            for turn in range(runs):
                say(f"{name}: {turn} of {runs}")
                self.copy_root(root)
                with Running(self.command(root)) as vmm:
                    at, _ = vmm.wait_for(PROMPT, _SHELL_TIMEOUT_S)
                    samples.append(at_prompt(vmm, at - vmm.started))
                os.unlink(root)
        return samples


_SHELL_CLOCK = "from just before the process is spawned until the shell's prompt is read from its stdout; 1 CPU, {} MiB"


def _micro(runs: int) -> list[Row]:
    samples = Image("micro").boots("micro", runs, lambda _, seconds: seconds)
    return [Row("micro kernel to shell prompt", "s", _SHELL_CLOCK.format(MEMORY_MIB), 12, samples)]


def _debian(runs: int) -> list[Row]:
    samples = Image("debian").boots("debian", runs, lambda _, seconds: seconds)
    return [Row("Debian's stock kernel to shell prompt", "s", _SHELL_CLOCK.format(DEBIAN_MEMORY_MIB), 240, samples)]


def _syscalls(name: str, group: int, runs: int) -> list[float]:
    def bench(vmm: Running, _: float) -> float:
        vmm.type(b"bench-syscalls\n")
        return int(vmm.wait_for(_SYSCALLS, _TINY_TIMEOUT_S)[1][group]) / 1e3

    return Image("micro").boots(name, runs, bench)


def _getppid(runs: int) -> list[Row]:
    clock = "1000 calls in the micro image's bench-syscalls by the guest's CLOCK_MONOTONIC, one boot a run"
    return [Row("getppid in the guest", "us", clock, 150, _syscalls("getppid", 1, runs))]


def _touch(runs: int) -> list[Row]:
    clock = "the first write to each of 256 anonymous pages, likewise"
    return [Row("touching a fresh anonymous page", "us", clock, 500, _syscalls("touch", 2, runs))]


ROWS: dict[str, Callable[[int], list[Row]]] = {
    "start": _start,
    "pss": _pss,
    "pio": _pio,
    "ring0": _ring0,
    "micro": _micro,
    "getppid": _getppid,
    "touch": _touch,
    "debian": _debian,
}


def main() -> int:
    """The whole of `bench/boot`."""
    return Bench("boot", __doc__ or "", ROWS, RUNS).main()
