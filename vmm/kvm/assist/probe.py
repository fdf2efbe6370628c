"""Whether this host's KVM is complete or needs the assist: tried in a scratch VM, and remembered until the next boot.

The answer is kept in `DIRECTORY/kvm-kind`, two lines of text: what it holds for (pyvmm's version, the boot, the kernel,
the KVM modules), and the answer. A file that is not just that is as good as none.
"""

from __future__ import annotations

import os

import vmm

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.kvm.system import Kvm

_FILE = "kvm-kind"
_MAX_BYTES = 4096
_SYSCALL_WORKS, _SYSCALL_BROKEN = "syscall", "no-syscall"

#: One encoding of each instruction that the assist knows, harmless in ring 0 of a scratch guest with RAX = USER.
SAMPLES = {
    "int3": b"\xcc",
    "int": b"\xcd\x03",
    "sysret": b"\x48\x0f\x07",
    "clac": b"\x0f\x01\xca",
    "stac": b"\x0f\x01\xcb",
    "rdtscp": b"\x0f\x01\xf9",
    "rdpid": b"\xf3\x0f\xc7\xf9",  # rdpid rcx
    "clwb": b"\x66\x0f\xae\x30",  # clwb [rax]
    "invpcid": b"\x66\x0f\x38\x82\x08",  # invpcid rcx, [rax]
    "fwait": b"\x9b",
    "fnclex": b"\xdb\xe2",
    "ldmxcsr": b"\x0f\xae\x10",  # ldmxcsr [rax]
    "stmxcsr": b"\x0f\xae\x18",  # stmxcsr [rax]
    "xgetbv": b"\x0f\x01\xd0",
    "xsave": b"\x0f\xae\x20",  # xsave [rax]
    "xrstor": b"\x0f\xae\x28",  # xrstor [rax]
    "lsl": b"\x0f\x03\xc9",  # lsl ecx, ecx
    "lar": b"\x0f\x02\xc9",  # lar ecx, ecx
    "verr": b"\x0f\x00\xe1",  # verr cx
    "verw": b"\x0f\x00\xe9",  # verw cx
    "popcnt": b"\xf3\x0f\xb8\xc9",  # popcnt ecx, ecx
    "crc32": b"\xf2\x0f\x38\xf1\xc9",  # crc32 ecx, ecx
    "andn": b"\xc4\xe2\x70\xf2\xc9",  # andn ecx, ecx, ecx
    "shlx": b"\xc4\xe2\x71\xf7\xc9",  # shlx ecx, ecx, ecx
    "shrx": b"\xc4\xe2\x73\xf7\xc9",
    "sarx": b"\xc4\xe2\x72\xf7\xc9",
    "rorx": b"\xc4\xe3\x7b\xf0\xc9\x01",  # rorx ecx, ecx, 1
    "mulx": b"\xc4\xe2\x73\xf6\xd1",  # mulx edx, ecx, ecx
    "adcx": b"\x66\x0f\x38\xf6\xc9",  # adcx ecx, ecx
    "adox": b"\xf3\x0f\x38\xf6\xc9",  # adox ecx, ecx
}


class HostKind:
    """*missing* names the instructions of `SAMPLES` that KVM cannot do in ring 0; *syscall_ok*: `SYSCALL` arrives."""

    __slots__ = ("missing", "syscall_ok")

    def __init__(self, missing: tuple[str, ...], *, syscall_ok: bool) -> None:
        self.missing, self.syscall_ok = missing, syscall_ok

    @property
    def complete(self) -> bool:
        """Whether KVM needs no assist."""
        return self.syscall_ok and not self.missing


def host_kind(cache_dir: str | None) -> HostKind:
    """The kind of this host, from *cache_dir* if it is known there; else it is tried, and kept there if that can be.

    Raises:
        HostError: `/dev/kvm` cannot be opened or used.
    """
    if cache_dir is None:
        return _try_host()
    identity = _identity()
    kind = _load(cache_dir, identity)
    if kind is None:
        kind = _try_host()
        _store(cache_dir, identity, kind)
    return kind


def try_kvm(kvm: Kvm) -> HostKind:
    """Try each of `SAMPLES` in ring 0 and one `SYSCALL` from ring 3, in a scratch VM (20 ms where much is missing).

    Raises:
        KvmError: KVM refuses a step.
    """
    from vmm.kvm import abi, msrs, scratch
    from vmm.kvm.exits import EmulationFailure, PortWrite

    missing = []
    with scratch.ScratchGuest(kvm) as guest:
        guest.vcpu.regs[abi.RAX] = scratch.USER
        for name, code in SAMPLES.items():
            guest.memory.write(scratch.CODE, code + scratch.REPORT)
            guest.start(scratch.CODE)
            if isinstance(guest.run(), EmulationFailure):
                missing.append(name)
        guest.vcpu.set_msrs({msrs.STAR: scratch.STAR, msrs.LSTAR: scratch.CODE, msrs.SYSCALL_MASK: 1 << 9})
        guest.memory.write(scratch.CODE, scratch.REPORT)
        guest.memory.write(scratch.USER, b"\x0f\x05")
        guest.start(scratch.USER, ring=3)
        match guest.run():
            case PortWrite(scratch.REPORT_PORT):  # ring 3 may not write to ports
                return HostKind(tuple(missing), syscall_ok=True)
        return HostKind(tuple(missing), syscall_ok=False)


def _try_host() -> HostKind:
    from vmm.kvm.system import Kvm

    kvm = Kvm()
    try:
        return try_kvm(kvm)
    finally:
        kvm.close()


def _identity() -> str:
    """What an answer depends on, in one line."""
    modules = [f"{name}={_text(f'/sys/module/{name}/srcversion')}" for name in _kvm_modules()]
    return " ".join([vmm.__version__, _text("/proc/sys/kernel/random/boot_id"), os.uname().release, *modules])


def _kvm_modules() -> list[str]:
    try:
        return sorted(name for name in os.listdir("/sys/module") if name.startswith("kvm"))
    except OSError:
        return []


def _text(path: str) -> str:
    """What a small file holds; empty if there is none (a built-in module has no srcversion)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        return os.read(fd, _MAX_BYTES).decode("ascii", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


def _load(directory: str, identity: str) -> HostKind | None:
    known, _, answer = _text(f"{directory}/{_FILE}").partition("\n")
    syscall, *missing = answer.split(" ")
    if known != identity or syscall not in (_SYSCALL_WORKS, _SYSCALL_BROKEN) or not SAMPLES.keys() >= set(missing):
        return None
    return HostKind(tuple(missing), syscall_ok=syscall == _SYSCALL_WORKS)


def _store(directory: str, identity: str, kind: HostKind) -> None:
    answer = " ".join((_SYSCALL_WORKS if kind.syscall_ok else _SYSCALL_BROKEN, *kind.missing))
    temporary = f"{directory}/{_FILE}.{os.getpid()}"
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with open(temporary, "x", encoding="ascii") as file:
            file.write(f"{identity}\n{answer}\n")
        os.replace(temporary, f"{directory}/{_FILE}")
    except OSError:  # no error: it is tried again at the next start
        try:
            os.unlink(temporary)
        except OSError:
            return
