"""What this host's KVM gives, tried: it opens, has what is needed, and runs an instruction."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator

from vmm import layout
from vmm.errors import HostError
from vmm.host.doctor import Row
from vmm.kvm import abi
from vmm.kvm.assist import probe
from vmm.kvm.exits import PortWrite, VcpuExit
from vmm.kvm.scratch import CODE, ScratchGuest
from vmm.kvm.system import REQUIRED_CAPABILITIES, Kvm

_USEFUL_CAPABILITIES = {
    abi.KVM_CAP_X86_USER_SPACE_MSR: "KVM_CAP_X86_USER_SPACE_MSR",
    abi.KVM_CAP_X86_MSR_FILTER: "KVM_CAP_X86_MSR_FILTER",
    abi.KVM_CAP_SET_GUEST_DEBUG: "KVM_CAP_SET_GUEST_DEBUG",
    abi.KVM_CAP_TSC_DEADLINE_TIMER: "KVM_CAP_TSC_DEADLINE_TIMER",
}
_OUT_F4_AL = b"\xe6\xf4"


def check_kvm(path: str = "/dev/kvm") -> Iterator[Row]:
    """All rows about KVM; if it does not open, only that one."""
    try:
        kvm = Kvm(path)
    except HostError as error:
        cause = error.__cause__
        code = cause.errno if isinstance(cause, OSError) else None
        yield Row(
            path, "needed", "absent" if code == errno.ENOENT else "failed", error.what, kvm_fix(code) or error.fix
        )
        return
    try:
        yield Row(path, "needed", "ok", f"opens, KVM API {abi.KVM_API_VERSION}")
        yield _capabilities(kvm)
        yield _more_capabilities(kvm)
        yield _run(kvm)
        yield _kind(kvm)
    finally:
        kvm.close()


def kvm_fix(code: int | None) -> str:
    """What to do on this host when opening `/dev/kvm` fails with the errno *code*; empty if that is not known."""
    in_container = os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")
    if in_container and code in (errno.ENOENT, errno.EPERM):
        return "this is a container: start it with --device /dev/kvm"
    if code in (errno.EACCES, errno.EPERM):
        if os.environ.get("GITHUB_ACTIONS") == "true":
            return (
                'run: echo \'KERNEL=="kvm", GROUP="kvm", MODE="0666", OPTIONS+="static_node=kvm"\' '
                "| sudo tee /etc/udev/rules.d/99-kvm.rules\n"
                "sudo udevadm control --reload-rules && sudo udevadm trigger --name-match=kvm"
            )
        return "run: sudo setfacl -m u:$USER:rw /dev/kvm\nfor good: sudo usermod -aG kvm $USER, and log in again"
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return module_fix(next((set(line.split()) for line in lines if line.startswith("flags")), set()))
    return ""


def module_fix(flags: set[str]) -> str:
    """What brings KVM to a processor with these `/proc/cpuinfo` *flags*."""
    if "vmx" in flags:
        return "run: sudo modprobe kvm_intel"
    if "svm" in flags:
        return "run: sudo modprobe kvm_amd"
    if "hypervisor" in flags:
        return (
            "this is a virtual machine without nested virtualization: turn it on where that machine is configured\n"
            "(on its host: sudo modprobe -r kvm_intel && sudo modprobe kvm_intel nested=1, and CPU model host)"
        )
    return "turn on VT-x (Intel) or SVM (AMD) in the firmware's set-up, then run: sudo modprobe kvm_intel (or kvm_amd)"


def _capabilities(kvm: Kvm) -> Row:
    missing = kvm.missing_capabilities()
    if missing:
        return Row("KVM capabilities", "needed", "failed", f"without {', '.join(missing)}", "use a newer kernel")
    return Row("KVM capabilities", "needed", "ok", f"all {len(REQUIRED_CAPABILITIES)} that are needed")


def _more_capabilities(kvm: Kvm) -> Row:
    missing = [name for number, name in _USEFUL_CAPABILITIES.items() if not kvm.check_extension(number)]
    name = "more of them"
    if missing:
        return Row(name, "useful", "absent", f"without {', '.join(missing)}", "Linux from 5.10 on has them")
    return Row(name, "useful", "ok", "MSR filter, guest debug, TSC deadline timer")


def _run(kvm: Kvm) -> Row:
    name = "run a guest"
    started = time.perf_counter()
    try:
        reason = run_instruction(kvm)
    except HostError as error:
        return Row(name, "needed", "failed", error.what, error.fix)
    spent_ms = (time.perf_counter() - started) * 1000
    match reason:
        case PortWrite(layout.PORT_DEBUG_EXIT, 1, b"\x2a"):
            return Row(name, "needed", "ok", f"one instruction, with set-up in {spent_ms:.1f} ms")
    return Row(name, "needed", "failed", f"OUT came back as {type(reason).__name__}", "is this KVM x86-64's?")


def run_instruction(kvm: Kvm) -> VcpuExit:
    """Let a scratch VM write 0x2a to the debug-exit port; why its vCPU came back.

    Raises:
        KvmError: some step of it is refused.
    """
    with ScratchGuest(kvm) as guest:
        guest.memory.write(CODE, _OUT_F4_AL)
        guest.vcpu.regs[abi.RAX] = 0x2A
        guest.start(CODE)
        return guest.run()


def _kind(kvm: Kvm) -> Row:
    """Whether KVM does all of a processor, or pyvmm must help; tried anew, whatever the cache says."""
    name = "KVM kind"
    try:
        kind = probe.try_kvm(kvm)
    except HostError as error:
        return Row(name, "needed", "failed", error.what, error.fix)
    if kind.complete:
        return Row(name, "needed", "ok", "complete")
    parts = [] if kind.syscall_ok else ["SYSCALL"]
    if kind.missing:
        parts.append(f"{len(kind.missing)} instructions ({' '.join(kind.missing)})")
    return Row(name, "needed", "ok", f"software, incomplete: pyvmm assists {' and '.join(parts)}")
