"""The ACPI tables, walked from the RSDP as an operating system does, and read by `iasl` where that is installed."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from vmm import layout
from vmm.boot import acpi, aml
from vmm.devices import acpi_pm, cmos

VIRTIO = [
    (layout.VIRTIO_MMIO_BASE + index * layout.VIRTIO_MMIO_STRIDE, layout.VIRTIO_MMIO_SIZE, gsi)
    for index, gsi in enumerate(layout.VIRTIO_GSIS)
]


class Tables:
    """The tables that the RSDP of *blob* leads to, each with its checksum checked."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        assert blob[:8] == b"RSD PTR "
        assert blob[15] == 2
        assert sum(blob[:20]) % 256 == 0
        assert sum(blob[:36]) % 256 == 0
        self.xsdt = self.at(struct.unpack_from("<Q", blob, 24)[0], b"XSDT")
        addresses = [entry for (entry,) in struct.iter_unpack("<Q", self.xsdt[36:])]
        self.fadt = self.at(addresses[0], b"FACP")
        self.madt = self.at(addresses[1], b"APIC")
        self.mcfg = self.at(addresses[2], b"MCFG") if len(addresses) > 2 else None
        self.dsdt = self.at(struct.unpack_from("<Q", self.fadt, 140)[0], b"DSDT")

    def at(self, gpa: int, signature: bytes) -> bytes:
        offset = gpa - layout.ACPI_TABLES
        (size,) = struct.unpack_from("<I", self.blob, offset + 4)
        table = self.blob[offset : offset + size]
        assert table[:4] == signature
        assert len(table) == size
        assert sum(table) % 256 == 0
        return table


PCI = (layout.pci_windows(1 << 30), [(slot, layout.PCI_GSIS[slot % 8]) for slot in range(1, layout.PCI_SLOTS + 1)])


@pytest.fixture(scope="module")
def tables() -> Tables:
    return Tables(acpi.build_tables(2, VIRTIO))


@pytest.fixture(scope="module")
def with_pci() -> Tables:
    return Tables(acpi.build_tables(2, [], PCI))


def test_they_fit_with_the_most_cpus_and_devices() -> None:
    assert len(acpi.build_tables(254, VIRTIO, PCI)) <= layout.GENERATION_ID - layout.ACPI_TABLES
    Tables(acpi.build_tables(1, []))


def test_fadt(tables: Tables) -> None:
    fadt = tables.fadt
    assert (len(fadt), fadt[8], fadt[131]) == (276, 6, 4)
    facs, dsdt = struct.unpack_from("<II", fadt, 36)
    assert facs % 64 == 0
    assert tables.blob[facs - layout.ACPI_TABLES :][:8] == b"FACS" + struct.pack("<I", 64)
    assert struct.unpack_from("<Q", fadt, 140) == (dsdt,)
    assert struct.unpack_from("<HI", fadt, 46) == (layout.IRQ_SCI, 0)  # SMI_CMD 0: always in ACPI mode
    assert struct.unpack_from("<6I", fadt, 56) == (0x600, 0, 0x604, 0, 0, 0x608)
    assert tuple(fadt[88:92]) == (4, 2, 0, 4)
    assert struct.unpack_from("<H", fadt, 109) == (0b1_0111,)
    assert struct.unpack_from("<I", fadt, 112) == (0b101_0111_0101,)
    for offset, register in (
        (116, (1, 8, 0, 1, 0x60C)),
        (148, (1, 32, 0, 2, 0x600)),
        (172, (1, 16, 0, 2, 0x604)),
        (208, (1, 32, 0, 3, 0x608)),
    ):
        assert struct.unpack_from("<BBBBQ", fadt, offset) == register
    assert fadt[128] == acpi.RESET_VALUE
    assert fadt[108] == 0x32


def test_the_devices_agree() -> None:
    assert (acpi.PM_SIZE, acpi.RESET, acpi.RESET_VALUE, acpi.SLP_TYP_S5) == (
        acpi_pm.SIZE,
        acpi_pm.RESET_OFFSET,
        acpi_pm.RESET_VALUE,
        acpi_pm.SLP_TYP_S5,
    )
    names = {acpi.PM1_EVENT: "PM1a_STS", acpi.PM1_CONTROL: "PM1a_CNT", acpi.PM_TIMER: "PM_TMR"}
    device = acpi_pm.AcpiPm(lambda: None, lambda: None)
    assert {offset: device.register_name(offset) for offset in names} == names
    assert acpi.CMOS_CENTURY == cmos._CENTURY


def test_madt(tables: Tables) -> None:
    assert struct.unpack_from("<II", tables.madt, 36) == (layout.LAPIC_BASE, 1)
    entries, at = [], 44
    while at < len(tables.madt):
        entries.append(tables.madt[at : at + tables.madt[at + 1]])
        at += tables.madt[at + 1]
    assert entries == [
        struct.pack("<BBBBI", 0, 8, 0, 0, 1),
        struct.pack("<BBBBI", 0, 8, 1, 1, 1),
        struct.pack("<BBBBII", 1, 12, 0, 0, layout.IOAPIC_BASE, 0),
        struct.pack("<BBBBIH", 2, 10, 0, 9, 9, 0b0101),
        struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1),
    ]


def test_dsdt_has_every_device_at_its_address(tables: Tables) -> None:
    for gpa, size, gsi in VIRTIO:
        resources = struct.pack("<BHBII", 0x86, 9, 1, gpa, size) + struct.pack("<BHBBI", 0x89, 6, 3, 1, gsi)
        assert tables.dsdt.count(resources) == 1
    assert tables.dsdt.count(b"LNRO0005\0") == len(VIRTIO)
    assert tables.dsdt.count(b"QEMU0001\0") == 1
    assert b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00" in tables.dsdt


def test_dsdt_says_where_the_generation_id_is(tables: Tables) -> None:
    assert b"ADDR\x12\x08\x02\x0c" + layout.GENERATION_ID.to_bytes(4, "little") + b"\x00" in tables.dsdt
    assert tables.dsdt.count(b"VM_Gen_Counter\0") == 2
    assert tables.dsdt.count(b"_EVT\x01\x86VGEN\x0a\x80") == 1


def test_without_pci_there_is_no_trace_of_it(tables: Tables) -> None:
    assert tables.mcfg is None
    assert b"PCI0" not in tables.dsdt


def test_mcfg_leads_to_the_configuration_space_of_bus_0(with_pci: Tables) -> None:
    assert with_pci.mcfg is not None
    assert struct.unpack("<8xQHBB4x", with_pci.mcfg[36:]) == (layout.PCI_ECAM, 0, 0, 0)
    reserved = struct.pack("<BHBII", 0x86, 9, 1, layout.PCI_ECAM, layout.PCI_ECAM_SIZE)
    assert with_pci.dsdt.count(reserved) == 1


def test_the_host_bridge_has_one_bus_and_the_windows(with_pci: Tables) -> None:
    assert struct.pack("<BHBBB5H", 0x88, 13, 2, 0x0C, 0, 0, 0, 0, 0, 1) in with_pci.dsdt
    for gpa, size in PCI[0]:
        window = struct.pack("<BHBBB5Q", 0x8A, 43, 0, 0x0C, 1, 0, gpa, gpa + size - 1, 0, size)
        assert with_pci.dsdt.count(window) == 1


def test_inta_of_each_slot_has_its_interrupt(with_pci: Tables) -> None:
    for slot, gsi in PCI[1]:
        route = aml.package(aml.integer(slot << 16 | 0xFFFF), b"\0", b"\0", aml.integer(gsi))
        assert with_pci.dsdt.count(route) == 1


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0x1_0000, "0c00000100"),
        (1 << 32, "0e0000000001000000"),
        (2**64 - 1, "0e" + "ff" * 8),
    ],
)
def test_integers(value: int, encoded: str) -> None:
    assert aml.integer(value).hex() == encoded


def test_eisa_id() -> None:
    assert aml.eisa_id("PNP0501") == b"\x0c\x41\xd0\x05\x01"


@pytest.mark.parametrize(
    ("size", "length"), [(0x3A, "3f"), (0x3B, "4104"), (0xFF9, "4f ff"), (0xFFA, "810001"), (0xFFFF8, "8fffff")]
)
def test_package_lengths(size: int, length: str) -> None:
    """ACPI 6.4 §20.2.4: one byte below 64, then a nibble and one to three bytes; it counts itself."""
    encoded = aml.scope("_SB_", bytes(size))
    assert encoded[1 : 1 + len(bytes.fromhex(length))] == bytes.fromhex(length)
    count = 1 + (encoded[1] >> 6)
    value = encoded[1] if count == 1 else encoded[1] & 0xF | int.from_bytes(encoded[2 : 1 + count], "little") << 4
    assert value == len(encoded) - 1


@pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (Debian: acpica-tools) is not installed")
@pytest.mark.parametrize("which", ["tables", "with_pci"])
def test_iasl_makes_the_same_dsdt_of_its_own_reading(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tables: Tables = request.getfixturevalue(which)
    (tmp_path / "dsdt.aml").write_bytes(tables.dsdt)
    for table in (tables.fadt, tables.madt, tables.xsdt, *([tables.mcfg] if tables.mcfg else ())):
        path = tmp_path / (table[:4].decode().lower() + ".aml")
        path.write_bytes(table)
        _iasl(tmp_path, "-d", path.name)
        text = path.with_suffix(".dsl").read_text()
        assert "rror" not in text
        assert "nvalid" not in text
        assert "nknown" not in text
    _iasl(tmp_path, "-d", "dsdt.aml")
    assert "0 Errors, 0 Warnings, 0 Remarks, 0 Optimizations" in _iasl(tmp_path, "-p", "again", "dsdt.dsl")
    assert (tmp_path / "again.aml").read_bytes()[36:] == tables.dsdt[36:]


def _iasl(directory: Path, *arguments: str) -> str:
    done = subprocess.run(["iasl", *arguments], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr
