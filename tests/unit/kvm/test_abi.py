"""The structs and numbers against the kernel's own headers, where there are any, and the decoding of exits."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmm.kvm import abi, cpuid, exits
from vmm.kvm.vcpu import Vcpu

RUN_BYTES = 8192


def c_expressions() -> dict[str, int]:
    """C expression -> what `abi` says it is."""
    values = {name: value for name, value in vars(abi).items() if name.startswith("KVM_") and isinstance(value, int)}
    for made_up in ("KVM_MAX_ROUTES", "KVM_MAX_CPUID_ENTRIES", "KVM_CPUID_FLAG_SIGNIFCANT_INDEX"):
        del values[made_up]
    offsets = {
        "immediate_exit": abi.RUN_IMMEDIATE_EXIT,
        "exit_reason": abi.RUN_EXIT_REASON,
        "io": abi.RUN_EXIT,
        "kvm_valid_regs": abi.RUN_VALID_REGS,
        "kvm_dirty_regs": abi.RUN_DIRTY_REGS,
        "s": abi.RUN_SYNC_REGS,
    }
    values |= {f"__builtin_offsetof(struct kvm_run, {name})": offset for name, offset in offsets.items()}
    for index, name in enumerate(abi.REGISTER_NAMES):
        values[f"__builtin_offsetof(struct kvm_regs, {name})"] = 8 * index
    structs = [kind for kind in vars(abi).values() if isinstance(kind, type) and issubclass(kind, ctypes.Structure)]
    flexible = {abi.kvm_cpuid2: 8, abi.kvm_msrs: 8, abi.kvm_irq_routing: 8, abi.kvm_msr_list: 4}
    for kind in structs:
        if kind.__name__.startswith("kvm_") and kind not in {abi.kvm_run_header, abi.kvm_xsave, *flexible}:
            values[f"sizeof(struct {kind.__name__})"] = ctypes.sizeof(kind)
    values["sizeof(((struct kvm_xsave *)0)->region)"] = ctypes.sizeof(abi.kvm_xsave)
    values |= {f"sizeof(struct {kind.__name__})": size for kind, size in flexible.items()}
    return values


def test_the_kernels_headers_agree(tmp_path: Path) -> None:
    if not shutil.which("gcc") or not os.path.exists("/usr/include/linux/kvm.h"):
        pytest.skip("needs gcc and linux/kvm.h (packages gcc, linux-libc-dev)")
    expected = c_expressions()
    lines = "".join(f'printf("%llu\\n", (unsigned long long)({name}));\n' for name in expected)
    source, binary = tmp_path / "abi.c", tmp_path / "abi"
    source.write_text(f"#include <stdio.h>\n#include <linux/kvm.h>\nint main(void) {{\n{lines}return 0; }}\n")
    subprocess.run(["gcc", "-o", binary, source], check=True)
    seen = map(int, subprocess.run([binary], check=True, capture_output=True, text=True).stdout.split())
    assert dict(zip(expected, seen, strict=True)) == expected


@pytest.fixture
def fabricated() -> Iterator[tuple[Vcpu, mmap.mmap]]:
    """A vCPU whose `kvm_run` is ours to write."""
    fd = os.memfd_create("kvm_run")
    os.ftruncate(fd, RUN_BYTES)
    vcpu = Vcpu(fd, 0, RUN_BYTES)
    with mmap.mmap(fd, RUN_BYTES) as run:
        yield vcpu, run
    vcpu.close()


def put(run: mmap.mmap, reason: int, data: bytes) -> None:
    struct.pack_into("<I", run, 8, reason)
    run[32 : 32 + len(data)] = data


CASES = [
    (2, struct.pack("<BBHIQ", 0, 2, 0x1F0, 3, 4096), exits.PortRead, (0x1F0, 2, 3)),
    (2, struct.pack("<BBHIQ", 1, 1, 0x3F8, 4, 4096), exits.PortWrite, (0x3F8, 1, b"abcd")),
    (6, struct.pack("<Q8sIB", 0xD000_0000, b"\x78\x56\xff", 2, 1), exits.MmioWrite, (0xD000_0000, 2, 0x5678)),
    (6, struct.pack("<Q8sIB", 0xD000_0000, b"\xff" * 8, 2, 0), exits.MmioRead, (0xD000_0000, 2)),
    (30, struct.pack("<B7xIIQ", 0, 4, 0xC000_0082, 77), exits.MsrWrite, (0xC000_0082, 77)),
    (4, struct.pack("<IIQQQ", 1, 0, 0xFFFF_8000, 0x4001, 0), exits.DebugTrap, (0xFFFF_8000, 0x4001)),
    (5, b"", exits.Halted, ()),
    (8, b"", exits.Shutdown, ()),
    (7, b"", exits.Interrupted, ()),
    (17, struct.pack("<IIQB15s", 1, 4, 1, 2, b"\xcd\x80"), exits.EmulationFailure, (b"\xcd\x80",)),
    (17, struct.pack("<IIQB15s", 1, 4, 1, 200, b"\x90" * 15), exits.EmulationFailure, (b"\x90" * 15,)),
    (17, struct.pack("<IIQB15s", 1, 0, 1, 2, b"\xcd\x80"), exits.EmulationFailure, (b"",)),
    (17, struct.pack("<IIQB15s", 1, 4, 0, 2, b"\xcd\x80"), exits.EmulationFailure, (b"",)),
    (17, struct.pack("<II", 3, 0), exits.InternalError, ("KVM internal error, suberror 3",)),
    (99, b"", exits.InternalError, ("KVM exit 99 that pyvmm did not ask for",)),
]


@pytest.mark.parametrize(("reason", "data", "kind", "fields"), CASES)
def test_exits(  # noqa: PLR0917
    fabricated: tuple[Vcpu, mmap.mmap],
    monkeypatch: pytest.MonkeyPatch,
    reason: int,
    data: bytes,
    kind: type,
    fields: tuple[object, ...],
) -> None:
    vcpu, run = fabricated
    monkeypatch.setattr("vmm.kvm.vcpu.run_ioctl", lambda *_: 0)
    put(run, reason, data)
    run[4096:4100] = b"abcd"
    event = vcpu.run()
    assert type(event) is kind
    assert tuple(getattr(event, name) for name in event.__match_args__) == fields


def test_failed_entry(fabricated: tuple[Vcpu, mmap.mmap], monkeypatch: pytest.MonkeyPatch) -> None:
    vcpu, run = fabricated
    monkeypatch.setattr("vmm.kvm.vcpu.run_ioctl", lambda *_: 0)
    put(run, 9, struct.pack("<Q", 0x8000_0021))
    event = vcpu.run()
    assert isinstance(event, exits.InternalError)
    assert "0x80000021" in event.reason


def test_answers(fabricated: tuple[Vcpu, mmap.mmap], monkeypatch: pytest.MonkeyPatch) -> None:
    vcpu, run = fabricated
    monkeypatch.setattr("vmm.kvm.vcpu.run_ioctl", lambda *_: 0)
    put(run, 2, struct.pack("<BBHIQ", 0, 2, 0x1F0, 3, 4096))
    assert isinstance(vcpu.run(), exits.PortRead)
    for item, value in enumerate((1, 2, 0xFFFF)):
        vcpu.reply_port(value, item)
    assert run[4096:4102] == b"\1\0\2\0\xff\xff"
    vcpu.reply_mmio((1 << 64) - 1)
    assert run[40:48] == b"\xff" * 8
    vcpu.reply_msr(error=True)
    assert run[32] == 1


def entry(table: abi.kvm_cpuid2, function: int, index: int = 0) -> abi.kvm_cpuid_entry2:
    (found,) = (e for e in table.entries[: table.nent] if (e.function, e.index) == (function, index))
    return found


def cpuid_table() -> abi.kvm_cpuid2:
    leaves = [
        (1, 0),
        (4, 0),
        (4, 3),
        (0xB, 0),
        *((leaf, 0) for leaf in (0x4000_0001, 0x8000_0007, 0x8000_0008, 0x8000_001E)),
    ]
    table = abi.kvm_cpuid2(nent=len(leaves))
    for target, (function, index) in zip(table.entries, leaves, strict=False):
        target.function, target.index = function, index
        target.eax = target.ebx = target.ecx = target.edx = 0xFFFF_FFFF
    entry(table, 4, 0).eax, entry(table, 4, 3).eax = 1 << 5, 3 << 5
    return table


@pytest.mark.parametrize(("cpus", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (16, 4)])
def test_topology(cpus: int, bits: int) -> None:
    table = cpuid_table()
    cpuid.set_topology(table, cpus - 1, cpus, tsc_deadline=True)
    leaf1 = entry(table, 1)
    assert (leaf1.ebx >> 24, leaf1.ebx >> 16 & 0xFF, leaf1.edx >> 28 & 1) == (cpus - 1, cpus, cpus > 1)
    assert entry(table, 4, 0).eax == ((1 << bits) - 1) << 26 | 1 << 5  # L1: each core its own
    assert entry(table, 4, 3).eax == ((1 << bits) - 1) << 26 | ((1 << bits) - 1) << 14 | 3 << 5  # L3: all share it
    threads, cores = entry(table, 0xB), entry(table, 0xB, 1)  # the second of them is new
    assert (threads.eax, threads.ebx, threads.ecx, threads.edx) == (0, 1, 0x100, cpus - 1)
    assert (cores.eax, cores.ebx, cores.ecx, cores.edx) == (bits, cpus, 0x201, cpus - 1)
    assert cores.flags == abi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    assert entry(table, 0x8000_0008).ecx & 0xF0FF == bits << 12 | cpus - 1


def test_hiding() -> None:
    table = cpuid_table()
    cpuid.hide_hypercalls(table)
    cpuid.hide_cx16(table)
    cpuid.hide_invariant_tsc(table)
    assert entry(table, 0x4000_0001).eax == 0xFFFF_FFFF & ~(1 << 2 | 1 << 7 | 1 << 11 | 1 << 13)
    assert entry(table, 1).ecx == 0xFFFF_FFFF & ~(1 << 13)
    assert entry(table, 1).eax == 0xFFFF_FFFF
    assert entry(table, 0x8000_0007).edx == 0xFFFF_FFFF & ~(1 << 8)
