"""The ACPI tables of the machine (ACPI 6.4): RSDP, XSDT, FADT, MADT, DSDT, FACS, MCFG, back to back from the RSDP on.

Interrupts follow KVM's default routing, where GSI n is IO-APIC pin n, the timer's IRQ 0 included: so there is no
source override for IRQ 0. The SCI is an irqfd and thus an edge, which ISA IRQ 9 needs an override to be.
"""

from __future__ import annotations

import struct

from vmm import layout
from vmm.boot import aml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    #: The windows for BARs, `(gpa, size)` each, and `(slot, GSI of INTA#)` of each function.
    Pci = tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]]

#: The PM block at `layout.PORT_ACPI_PM`: offset and length in bytes of each register group (ACPI 6.4 §4.8.3).
PM1_EVENT, PM1_EVENT_SIZE = 0x0, 4
PM1_CONTROL, PM1_CONTROL_SIZE = 0x4, 2
PM_TIMER, PM_TIMER_SIZE = 0x8, 4
RESET, RESET_VALUE = 0xC, 1
PM_SIZE = 0x10
#: The RTC register that holds the century.
CMOS_CENTURY = 0x32
#: What to write to SLP_TYP in PM1 control for soft-off.
SLP_TYP_S5 = 5

_HEADER = struct.Struct("<4sIBB6s8sI4sI")
_OEM_ID, _OEM_TABLE_ID, _CREATOR_ID = b"PYVMM ", b"PYVMM   ", b"PYVM"
_RSDP_SIZE, _FACS_SIZE, _FADT_SIZE = 36, 64, 276

# FADT IAPC_BOOT_ARCH (§5.2.9.3) and flags (§5.2.9).
_LEGACY_DEVICES, _HAS_8042, _NO_VGA, _NO_ASPM = 1 << 0, 1 << 1, 1 << 2, 1 << 4
_WBINVD, _PROC_C1, _TIMER_32_BITS, _RESET_REG = 1 << 0, 1 << 2, 1 << 8, 1 << 10
_NO_POWER_BUTTON, _NO_SLEEP_BUTTON, _NO_FIXED_RTC = 1 << 4, 1 << 5, 1 << 6

_GENERATION_CHANGED = 0x80
_PCAT_COMPAT = 1 << 0  # MADT flags: there are 8259s too
_EDGE_ACTIVE_HIGH = 0b0101  # MPS INTI flags


def build_tables(cpus: int, virtio: Sequence[tuple[int, int, int]], pci: Pci | None = None) -> bytes:
    """All tables, for `layout.ACPI_TABLES`; the RSDP comes first.

    *cpus* is 1 to 254, APIC ids from 0; *virtio* has `(gpa, size, gsi)` of each virtio-mmio device; *pci* is bus 0,
    None if there is none.
    """
    blob = bytearray(_RSDP_SIZE)

    def add(table: bytes) -> int:
        """Append *table*, aligned to 64 bytes, and return its address."""
        blob.extend(bytes(-len(blob) % 64))
        gpa = layout.ACPI_TABLES + len(blob)
        blob.extend(table)
        return gpa

    facs = add(struct.pack("<4sIIIIQB31x", b"FACS", _FACS_SIZE, 0, 0, 0, 0, 2))
    dsdt = add(_table(b"DSDT", 2, _dsdt(virtio, pci)))
    fadt = add(_table(b"FACP", 6, _fadt(facs, dsdt)))
    madt = add(_table(b"APIC", 5, _madt(cpus)))
    listed = [fadt, madt]
    if pci is not None:
        listed.append(add(_table(b"MCFG", 1, struct.pack("<8xQHBB4x", layout.PCI_ECAM, 0, 0, 0))))
    xsdt = add(_table(b"XSDT", 1, struct.pack(f"<{len(listed)}Q", *listed)))
    blob[:_RSDP_SIZE] = _rsdp(xsdt)
    return bytes(blob)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    header = bytearray(_HEADER.pack(signature, size, revision, 0, _OEM_ID, _OEM_TABLE_ID, 1, _CREATOR_ID, 1))
    header[9] = _checksum(header + body)
    return bytes(header) + body


def _rsdp(xsdt: int) -> bytes:
    rsdp = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM_ID, 2, 0, _RSDP_SIZE, xsdt, 0))
    rsdp[8] = _checksum(rsdp[:20])
    rsdp[32] = _checksum(rsdp)
    return bytes(rsdp)


def _checksum(data: Iterable[int]) -> int:
    """The byte that makes the sum of all bytes zero."""
    return -sum(data) & 0xFF


def _fadt(facs: int, dsdt: int) -> bytes:
    """The fields of §5.2.9 behind the header. SMI_CMD is 0: the machine is always in ACPI mode."""
    table = bytearray(_FADT_SIZE)
    put = struct.pack_into
    port = layout.PORT_ACPI_PM
    put("<IIxBHI", table, 36, facs, dsdt, 0, layout.IRQ_SCI, 0)
    put("<I", table, 56, port + PM1_EVENT)
    put("<I", table, 64, port + PM1_CONTROL)
    put("<I", table, 76, port + PM_TIMER)
    put("<BBBB", table, 88, PM1_EVENT_SIZE, PM1_CONTROL_SIZE, 0, PM_TIMER_SIZE)
    put("<HH", table, 96, 101, 1001)  # C2 and C3 latency: neither is there
    table[108] = CMOS_CENTURY
    put("<H", table, 109, _LEGACY_DEVICES | _HAS_8042 | _NO_VGA | _NO_ASPM)
    absent = _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _NO_FIXED_RTC
    put("<I", table, 112, _WBINVD | _PROC_C1 | _TIMER_32_BITS | _RESET_REG | absent)
    table[116:128] = _io_register(port + RESET, 1)
    table[128] = RESET_VALUE
    table[131] = 4  # FADT 6.4
    put("<Q", table, 140, dsdt)
    table[148:160] = _io_register(port + PM1_EVENT, PM1_EVENT_SIZE)
    table[172:184] = _io_register(port + PM1_CONTROL, PM1_CONTROL_SIZE)
    table[208:220] = _io_register(port + PM_TIMER, PM_TIMER_SIZE)
    return bytes(table[_HEADER.size :])


def _io_register(port: int, size: int) -> bytes:
    """A Generic Address Structure in I/O space (§5.2.3.2); PM1 event registers are accessed by halves."""
    access = {1: 1, 2: 2, 4: 2 if port == layout.PORT_ACPI_PM + PM1_EVENT else 3}[size]
    return struct.pack("<BBBBQ", 1, 8 * size, 0, access, port)


def _madt(cpus: int) -> bytes:
    """§5.2.12: one local APIC per CPU, the IO-APIC, the SCI as an edge, NMI on LINT1 of all CPUs."""
    body = struct.pack("<II", layout.LAPIC_BASE, _PCAT_COMPAT)
    for cpu in range(cpus):
        body += struct.pack("<BBBBI", 0, 8, cpu, cpu, 1)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC_BASE, 0)
    body += struct.pack("<BBBBIH", 2, 10, 0, layout.IRQ_SCI, layout.IRQ_SCI, _EDGE_ACTIVE_HIGH)
    return body + struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1)


def _dsdt(virtio: Sequence[tuple[int, int, int]], pci: Pci | None) -> bytes:
    zero = aml.integer(0)
    s5 = aml.name("_S5_", aml.package(aml.integer(SLP_TYP_S5), aml.integer(SLP_TYP_S5), zero, zero))
    devices = [
        _device("PMIO", aml.eisa_id("PNP0C02"), aml.io(layout.PORT_ACPI_PM, PM_SIZE)),
        _device("COM1", aml.eisa_id("PNP0501"), aml.io(layout.PORT_COM1, 8), aml.irq(layout.IRQ_COM1)),
        _device("KBD_", aml.eisa_id("PNP0303"), aml.io(layout.PORT_I8042, 1), aml.io(layout.PORT_I8042 + 4, 1),
                aml.irq(layout.IRQ_KEYBOARD)),
        _device("RTC_", aml.eisa_id("PNP0B00"), aml.io(layout.PORT_CMOS, 2), aml.irq(layout.IRQ_RTC)),
        _device("PEVT", aml.string("QEMU0001"), aml.io(layout.PORT_PVPANIC, 1)),
        *_generation(),
    ]  # fmt: skip
    for index, (gpa, size, gsi) in enumerate(virtio):
        hardware_id = aml.string("LNRO0005")
        devices.append(_device(f"VR{index:02X}", hardware_id, aml.memory32(gpa, size), aml.interrupt(gsi), uid=index))
    if pci is not None:
        devices += _pci(*pci)
    return s5 + aml.scope("_SB_", *devices)


def _generation() -> list[bytes]:
    """Where the generation id is (Microsoft, "Virtual Machine Generation ID"), and who tells of a new one (§5.6.9)."""
    where, counter = aml.integer(layout.GENERATION_ID), aml.string("VM_Gen_Counter")
    return [
        aml.device(
            "VGEN",
            aml.name("_HID", aml.string("PYVM0001")),
            aml.name("_CID", counter),
            aml.name("_DDN", counter),
            aml.name("ADDR", aml.package(where, aml.integer(0))),
        ),
        aml.device(
            "GED_",
            aml.name("_HID", aml.string("ACPI0013")),
            aml.name("_UID", aml.integer(0)),
            aml.name("_CRS", aml.resources(aml.interrupt(layout.IRQ_GENERATION))),
            aml.method("_EVT", 1, aml.notify("VGEN", _GENERATION_CHANGED)),
        ),
    ]


def _pci(windows: Sequence[tuple[int, int]], lines: Sequence[tuple[int, int]]) -> list[bytes]:
    """The host bridge (PCI Firmware 3.2 §4.1.2), and what keeps others off its configuration space."""
    zero = aml.integer(0)
    routes = [aml.package(aml.integer(slot << 16 | 0xFFFF), zero, zero, aml.integer(gsi)) for slot, gsi in lines]
    ecam = _device("ECAM", aml.eisa_id("PNP0C02"), aml.memory32(layout.PCI_ECAM, layout.PCI_ECAM_SIZE), uid=1)
    bridge = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_UID", zero),
        aml.name("_SEG", zero),
        aml.name("_BBN", zero),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(0, 0),
                aml.io(layout.PORT_PCI_CONFIG, 8),
                *(aml.memory_window(gpa, size) for gpa, size in windows),
            ),
        ),
        aml.name("_PRT", aml.package(*routes)),
    )
    return [ecam, bridge]


def _device(path: str, hardware_id: bytes, *resources: bytes, uid: int = 0) -> bytes:
    """A device that is there (`_STA` 0x0F)."""
    return aml.device(
        path,
        aml.name("_HID", hardware_id),
        aml.name("_UID", aml.integer(uid)),
        aml.name("_STA", aml.integer(0x0F)),
        aml.name("_CRS", aml.resources(*resources)),
    )
