"""The memory map that firmware would report (ACPI 6.4 §15, `INT 15h, AX=E820h`)."""

from __future__ import annotations

from vmm import layout

RAM, RESERVED, ACPI = 1, 2, 3


def memory_map(memory_bytes: int) -> list[tuple[int, int, int]]:
    """`(gpa, size in bytes, type)` of each range, ascending, in a guest with *memory_bytes* (over 1 MiB) of RAM."""
    (_, low), *high = layout.ram_regions(memory_bytes)
    entries = [
        (0, layout.EBDA, RAM),
        (layout.EBDA, 0xA_0000 - layout.EBDA, RESERVED),
        (layout.ACPI_TABLES, layout.ACPI_TABLES_END - layout.ACPI_TABLES, ACPI),
        (layout.HIGH_RAM, low - layout.HIGH_RAM, RAM),
    ]
    entries.append((layout.PCI_ECAM, layout.PCI_ECAM_SIZE, RESERVED))
    return entries + [(gpa, size, RAM) for gpa, size in high]
