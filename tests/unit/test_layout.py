"""The map of the machine holds together."""

from __future__ import annotations

import itertools

import pytest

from vmm import layout

GIB = 1 << 30


@pytest.mark.parametrize("memory", [layout.PAGE, 128 << 20, 3 * GIB, 3 * GIB + layout.PAGE, 64 * GIB])
def test_ram_is_all_there_and_stays_out_of_the_hole(memory: int) -> None:
    regions = layout.ram_regions(memory)
    assert sum(size for _, size in regions) == memory
    assert regions[0][0] == 0
    for gpa, size in regions:
        assert size > 0
        assert gpa + size <= layout.LOW_RAM_END or gpa >= layout.ABOVE_4G


def test_no_high_ram_below_3_gib() -> None:
    assert layout.ram_regions(3 * GIB) == ((0, 3 * GIB),)
    assert layout.ram_regions(3 * GIB + 1) == ((0, 3 * GIB), (4 * GIB, 1))


def test_the_low_structures_do_not_overlap() -> None:
    starts = [
        layout.BOOT_GDT,
        layout.PVH_START_INFO,
        layout.ZERO_PAGE,
        layout.BOOT_PAGE_TABLES,
        layout.COMMAND_LINE,
        layout.EBDA,
        layout.ACPI_TABLES,
        layout.HIGH_RAM,
    ]
    assert starts == sorted(starts)
    assert layout.COMMAND_LINE + layout.COMMAND_LINE_MAX <= layout.EBDA


def test_the_hole_holds_its_devices_apart() -> None:
    devices = [
        (layout.PCI_BARS, layout.PCI_BARS_SIZE),
        (layout.VIRTIO_MMIO_BASE, layout.VIRTIO_MMIO_STRIDE * len(layout.VIRTIO_GSIS)),
        (layout.PCI_ECAM, layout.PCI_ECAM_SIZE),
        (layout.IOAPIC_BASE, layout.PAGE),
        (layout.LAPIC_BASE, layout.PAGE),
        (layout.KVM_IDENTITY_MAP, layout.PAGE),
        (layout.KVM_TSS, 3 * layout.PAGE),
    ]
    assert devices[0][0] >= layout.LOW_RAM_END
    for (start, size), (following, _) in itertools.pairwise(devices):
        assert start + size <= following
    assert sum(devices[-1]) <= layout.ABOVE_4G


def test_every_virtio_interrupt_is_an_ioapic_pin_of_its_own() -> None:
    legacy = {layout.IRQ_KEYBOARD, layout.IRQ_COM1, layout.IRQ_RTC, layout.IRQ_SCI, 0, 2}
    assert len(set(layout.VIRTIO_GSIS)) == len(layout.VIRTIO_GSIS)
    assert not legacy & set(layout.VIRTIO_GSIS)
    assert max(layout.VIRTIO_GSIS) < layout.IOAPIC_PINS


@pytest.mark.parametrize("memory", [128 << 20, 3 * GIB, 3 * GIB + layout.PAGE, 4 * GIB, 64 * GIB])
def test_pci_windows_stay_out_of_ram(memory: int) -> None:
    windows = layout.pci_windows(memory)
    ranges = sorted([*windows, *layout.ram_regions(memory)])
    for (start, size), (following, _) in itertools.pairwise(ranges):
        assert start + size <= following
    assert windows[1][0] >= layout.ABOVE_4G
    assert windows[0][0] + layout.PCI_BAR_STRIDE * (layout.PCI_SLOTS + 1) <= sum(windows[0])


def test_every_pci_interrupt_is_an_ioapic_pin_that_is_no_isa_interrupt() -> None:
    assert all(16 <= gsi < layout.IOAPIC_PINS for gsi in layout.PCI_GSIS)
