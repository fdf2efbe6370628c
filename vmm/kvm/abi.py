"""The KVM ABI of x86-64, in the kernel's own spelling (`linux/kvm.h`, `asm/kvm.h`).

The size of every struct is asserted against the kernel's at import.
"""

from __future__ import annotations

import ctypes
from ctypes import c_int32, c_uint8, c_uint16, c_uint32, c_uint64

KVM_API_VERSION = 12

# ioctls on /dev/kvm
KVM_GET_API_VERSION = 0xAE00
KVM_CREATE_VM = 0xAE01
KVM_GET_MSR_INDEX_LIST = 0xC004AE02
KVM_CHECK_EXTENSION = 0xAE03
KVM_GET_VCPU_MMAP_SIZE = 0xAE04
KVM_GET_SUPPORTED_CPUID = 0xC008AE05
# ioctls on a VM
KVM_CREATE_VCPU = 0xAE41
KVM_SET_USER_MEMORY_REGION = 0x4020AE46
KVM_SET_TSS_ADDR = 0xAE47
KVM_SET_IDENTITY_MAP_ADDR = 0x4008AE48
KVM_CREATE_IRQCHIP = 0xAE60
KVM_GET_IRQCHIP = 0xC208AE62
KVM_SET_IRQCHIP = 0x8208AE63
KVM_SET_GSI_ROUTING = 0x4008AE6A
KVM_IRQFD = 0x4020AE76
KVM_CREATE_PIT2 = 0x4040AE77
KVM_IOEVENTFD = 0x4040AE79
KVM_SET_CLOCK = 0x4030AE7B
KVM_GET_CLOCK = 0x8030AE7C
KVM_GET_PIT2 = 0x8070AE9F
KVM_SET_PIT2 = 0x4070AEA0
KVM_ENABLE_CAP = 0x4068AEA3
KVM_X86_SET_MSR_FILTER = 0x4188AEC6
# ioctls on a vCPU
KVM_RUN = 0xAE80
KVM_GET_REGS = 0x8090AE81
KVM_SET_REGS = 0x4090AE82
KVM_GET_SREGS = 0x8138AE83
KVM_SET_SREGS = 0x4138AE84
KVM_GET_MSRS = 0xC008AE88
KVM_SET_MSRS = 0x4008AE89
KVM_GET_FPU = 0x81A0AE8C
KVM_SET_FPU = 0x41A0AE8D
KVM_GET_LAPIC = 0x8400AE8E
KVM_SET_LAPIC = 0x4400AE8F
KVM_SET_CPUID2 = 0x4008AE90
KVM_GET_MP_STATE = 0x8004AE98
KVM_SET_MP_STATE = 0x4004AE99
KVM_SET_GUEST_DEBUG = 0x4048AE9B
KVM_GET_VCPU_EVENTS = 0x8040AE9F
KVM_SET_VCPU_EVENTS = 0x4040AEA0
KVM_GET_DEBUGREGS = 0x8080AEA1
KVM_SET_DEBUGREGS = 0x4080AEA2
KVM_GET_XSAVE = 0x9000AEA4
KVM_SET_XSAVE = 0x5000AEA5
KVM_GET_XCRS = 0x8188AEA6
KVM_SET_XCRS = 0x4188AEA7
KVM_GET_STATS_FD = 0xAECE
KVM_KVMCLOCK_CTRL = 0xAEAD

KVM_CAP_IRQCHIP = 0
KVM_CAP_USER_MEMORY = 3
KVM_CAP_EXT_CPUID = 7
KVM_CAP_SET_GUEST_DEBUG = 23
KVM_CAP_IRQFD = 32
KVM_CAP_PIT2 = 33
KVM_CAP_IOEVENTFD = 36
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_SYNC_REGS = 74
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_X86_USER_SPACE_MSR = 188
KVM_CAP_X86_MSR_FILTER = 189

KVM_EXIT_IO = 2
KVM_EXIT_DEBUG = 4
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_IRQ_WINDOW_OPEN = 7
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_X86_WRMSR = 30

KVM_EXIT_IO_OUT = 1
KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1

KVM_SYNC_X86_REGS = 1
KVM_SYNC_X86_SREGS = 2
KVM_SYNC_X86_EVENTS = 4

KVM_GUESTDBG_ENABLE = 1
KVM_GUESTDBG_SINGLESTEP = 2
KVM_GUESTDBG_USE_HW_BP = 0x20000

KVM_IRQFD_FLAG_DEASSIGN = 1
KVM_IRQFD_FLAG_RESAMPLE = 2
KVM_IOEVENTFD_FLAG_DATAMATCH = 1
KVM_IOEVENTFD_FLAG_PIO = 2
KVM_IOEVENTFD_FLAG_DEASSIGN = 4
KVM_PIT_SPEAKER_DUMMY = 1
KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2
KVM_IRQCHIP_PIC_MASTER = 0
KVM_IRQCHIP_PIC_SLAVE = 1
KVM_IRQCHIP_IOAPIC = 2
KVM_MSR_EXIT_REASON_FILTER = 4
KVM_MSR_FILTER_DEFAULT_ALLOW = 0
KVM_MSR_FILTER_WRITE = 2
KVM_MSR_FILTER_MAX_RANGES = 16
KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1
KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3

# Indices into kvm_regs seen as an array of u64: the order of the struct, which is not the order of the encoding.
RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP = range(8)
R8, R9, R10, R11, R12, R13, R14, R15, RIP, RFLAGS = range(8, 18)
REGISTER_NAMES = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()  # noqa: SIM905


class kvm_userspace_memory_region(ctypes.Structure):
    _fields_ = [
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    ]


class kvm_segment(ctypes.Structure):
    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    ]


class kvm_dtable(ctypes.Structure):
    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class kvm_sregs(ctypes.Structure):
    cs: kvm_segment
    ss: kvm_segment
    gdt: kvm_dtable
    idt: kvm_dtable
    _fields_ = [
        *((name, kvm_segment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        ("cr0", c_uint64),
        ("cr2", c_uint64),
        ("cr3", c_uint64),
        ("cr4", c_uint64),
        ("cr8", c_uint64),
        ("efer", c_uint64),
        ("apic_base", c_uint64),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


kvm_regs = c_uint64 * 18


class kvm_vcpu_events(ctypes.Structure):
    _fields_ = [
        ("exception_injected", c_uint8),
        ("exception_nr", c_uint8),
        ("exception_has_error_code", c_uint8),
        ("exception_pending", c_uint8),
        ("exception_error_code", c_uint32),
        ("interrupt_injected", c_uint8),
        ("interrupt_nr", c_uint8),
        ("interrupt_soft", c_uint8),
        ("interrupt_shadow", c_uint8),
        ("nmi_injected", c_uint8),
        ("nmi_pending", c_uint8),
        ("nmi_masked", c_uint8),
        ("nmi_pad", c_uint8),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", c_uint8 * 4),
        ("triple_fault_pending", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    ]


class kvm_sync_regs(ctypes.Structure):
    regs: ctypes.Array[c_uint64]
    sregs: kvm_sregs
    events: kvm_vcpu_events
    _fields_ = [("regs", kvm_regs), ("sregs", kvm_sregs), ("events", kvm_vcpu_events)]


class kvm_cpuid_entry2(ctypes.Structure):
    _fields_ = [
        ("function", c_uint32),
        ("index", c_uint32),
        ("flags", c_uint32),
        ("eax", c_uint32),
        ("ebx", c_uint32),
        ("ecx", c_uint32),
        ("edx", c_uint32),
        ("padding", c_uint32 * 3),
    ]


KVM_MAX_CPUID_ENTRIES = 256


class kvm_cpuid2(ctypes.Structure):
    entries: ctypes.Array[kvm_cpuid_entry2]
    _fields_ = [("nent", c_uint32), ("padding", c_uint32), ("entries", kvm_cpuid_entry2 * KVM_MAX_CPUID_ENTRIES)]


class kvm_msr_entry(ctypes.Structure):
    _fields_ = [("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64)]


MSRS_PER_CALL = 16


class kvm_msrs(ctypes.Structure):
    entries: ctypes.Array[kvm_msr_entry]
    _fields_ = [("nmsrs", c_uint32), ("pad", c_uint32), ("entries", kvm_msr_entry * MSRS_PER_CALL)]


class kvm_guest_debug(ctypes.Structure):
    _fields_ = [("control", c_uint32), ("pad", c_uint32), ("debugreg", c_uint64 * 8)]


class kvm_irqfd(ctypes.Structure):
    _fields_ = [
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    ]


class kvm_ioeventfd(ctypes.Structure):
    _fields_ = [
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    ]


class kvm_pit_config(ctypes.Structure):
    _fields_ = [("flags", c_uint32), ("pad", c_uint32 * 15)]


class kvm_irq_routing_entry(ctypes.Structure):
    _fields_ = [
        ("gsi", c_uint32),
        ("type", c_uint32),
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("target", c_uint32 * 8),  # a union: irqchip and pin; of a message, address (low, high) and data
    ]


KVM_MAX_ROUTES = 2048


class kvm_irq_routing(ctypes.Structure):
    entries: ctypes.Array[kvm_irq_routing_entry]
    _fields_ = [("nr", c_uint32), ("flags", c_uint32), ("entries", kvm_irq_routing_entry * KVM_MAX_ROUTES)]


class kvm_msr_filter_range(ctypes.Structure):
    _fields_ = [("flags", c_uint32), ("nmsrs", c_uint32), ("base", c_uint32), ("pad", c_uint32), ("bitmap", c_uint64)]


class kvm_msr_filter(ctypes.Structure):
    ranges: ctypes.Array[kvm_msr_filter_range]
    _fields_ = [
        ("flags", c_uint32),
        ("pad", c_uint32),
        ("ranges", kvm_msr_filter_range * KVM_MSR_FILTER_MAX_RANGES),
    ]


class kvm_enable_cap(ctypes.Structure):
    _fields_ = [("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64)]


class kvm_fpu(ctypes.Structure):
    fpr: ctypes.Array[ctypes.Array[c_uint8]]
    xmm: ctypes.Array[ctypes.Array[c_uint8]]
    _fields_ = [
        ("fpr", (c_uint8 * 16) * 8),
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftwx", c_uint8),
        ("pad1", c_uint8),
        ("last_opcode", c_uint16),
        ("last_ip", c_uint64),
        ("last_dp", c_uint64),
        ("xmm", (c_uint8 * 16) * 16),
        ("mxcsr", c_uint32),
        ("pad2", c_uint32),
    ]


class kvm_xsave(ctypes.Structure):
    """The XSAVE area in its standard format: FXSAVE's 512 bytes, the header, the components."""

    _fields_ = [
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftw", c_uint16),
        ("fop", c_uint16),
        ("rip", c_uint64),
        ("rdp", c_uint64),
        ("mxcsr", c_uint32),
        ("mxcsr_mask", c_uint32),
        ("st", c_uint8 * 128),
        ("xmm", c_uint8 * 256),
        ("unused", c_uint8 * 96),
        ("xstate_bv", c_uint64),
        ("components", c_uint8 * 3576),
    ]


class kvm_xcr(ctypes.Structure):
    """One extended control register."""

    _fields_ = [("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64)]


class kvm_xcrs(ctypes.Structure):
    """XCR0 and, one day, others."""

    _fields_ = [("nr_xcrs", c_uint32), ("flags", c_uint32), ("xcrs", kvm_xcr * 16), ("padding", c_uint64 * 16)]


class kvm_clock_data(ctypes.Structure):
    """The VM's clock (kvm-clock, Hyper-V's reference time) in nanoseconds."""

    _fields_ = [
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    ]


class kvm_irqchip(ctypes.Structure):
    """The state of one interrupt controller, `KVM_IRQCHIP_…`; pyvmm looks at none of it."""

    _fields_ = [("chip_id", c_uint32), ("pad", c_uint32), ("chip", c_uint8 * 512)]


MSR_INDICES_MAX = 1024


class kvm_msr_list(ctypes.Structure):
    """The MSRs that make up a vCPU's state."""

    indices: ctypes.Array[c_uint32]
    _fields_ = [("nmsrs", c_uint32), ("indices", c_uint32 * MSR_INDICES_MAX)]


# Kept as they are.
kvm_debugregs = c_uint8 * 128
kvm_lapic_state = c_uint8 * 1024
kvm_pit_state2 = c_uint8 * 112


class kvm_run_header(ctypes.Structure):
    """The fixed start of `struct kvm_run`; the exit's union follows at `RUN_EXIT`."""

    _fields_ = [
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
    ]


# Offsets into struct kvm_run.
RUN_IMMEDIATE_EXIT = 1
RUN_EXIT_REASON = 8
RUN_EXIT = 32
RUN_VALID_REGS = 288
RUN_DIRTY_REGS = 296
RUN_SYNC_REGS = 304

_SIZES: dict[type, int] = {
    kvm_userspace_memory_region: 32,
    kvm_segment: 24,
    kvm_dtable: 16,
    kvm_sregs: 312,
    kvm_regs: 144,
    kvm_vcpu_events: 64,
    kvm_sync_regs: 520,
    kvm_cpuid_entry2: 40,
    kvm_cpuid2: 8 + 40 * KVM_MAX_CPUID_ENTRIES,
    kvm_msr_entry: 16,
    kvm_msrs: 8 + 16 * MSRS_PER_CALL,
    kvm_guest_debug: 72,
    kvm_irqfd: 32,
    kvm_ioeventfd: 64,
    kvm_pit_config: 64,
    kvm_irq_routing_entry: 48,
    kvm_msr_filter_range: 24,
    kvm_msr_filter: 392,
    kvm_enable_cap: 104,
    kvm_fpu: 416,
    kvm_xsave: 4096,
    kvm_xcrs: 392,
    kvm_clock_data: 48,
    kvm_irqchip: 520,
    kvm_msr_list: 4 + 4 * MSR_INDICES_MAX,
    kvm_run_header: RUN_EXIT,
}
for _struct, _size in _SIZES.items():
    if ctypes.sizeof(_struct) != _size:
        raise ImportError(f"{_struct.__name__} is {ctypes.sizeof(_struct)} bytes, the kernel's is {_size}")
