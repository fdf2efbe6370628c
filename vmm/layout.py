"""The guest-physical map of the machine, and its ports and interrupts.

0x0_0000_0000  +--------------------------------------------+
               | RAM   0x0000_0500  GDT                      |
               |       0x0000_6000  PVH start info, memmap   |
               |       0x0000_7000  zero page (boot_params)  |
               |       0x0000_9000  boot page tables         |
               |       0x0002_0000  command line             |
0x0_0009_fc00  +--------------------------------------------+
               | hole (EBDA, VGA, option ROMs)               |
0x0_000e_0000  +--------------------------------------------+
               | ACPI tables, RSDP first                     |
               | 0x000f_f000  generation id                  |
0x0_0010_0000  +--------------------------------------------+
               | RAM: kernel, then initrd at the top         |
0x0_c000_0000  +--------------------------------------------+  end of low RAM at the latest
               | 0xc000_0000  PCI BARs                       |
               | 0xd000_0000  virtio-mmio, one page each     |
               | 0xe000_0000  PCI configuration space (ECAM) |
               | 0xfec0_0000  IO-APIC                        |
               | 0xfee0_0000  local APICs                    |
               | 0xfffb_c000  KVM's identity map and TSS     |
0x1_0000_0000  +--------------------------------------------+
               | RAM: what did not fit below the hole        |
               +--------------------------------------------+  at the next whole GiB
               | 1 GiB for PCI BARs that the guest moves     |
               +--------------------------------------------+
"""

from __future__ import annotations

PAGE = 0x1000

# RAM below 1 MiB: what the boot protocols need.
BOOT_GDT = 0x500
PVH_START_INFO = 0x6000
ZERO_PAGE = 0x7000
BOOT_PAGE_TABLES = 0x9000
BOOT_STACK_TOP = 0x1_F000
COMMAND_LINE = 0x2_0000
COMMAND_LINE_MAX = 0x1_0000
EBDA = 0x9_FC00
ACPI_TABLES = 0xE_0000
GENERATION_ID = 0xF_F000
ACPI_TABLES_END = 0x10_0000
HIGH_RAM = 0x10_0000  # 1 MiB: where kernels are loaded

# The 32-bit hole.
LOW_RAM_END = 0xC000_0000
PCI_BARS = 0xC000_0000
PCI_BARS_SIZE = 0x1000_0000
PCI_BAR_STRIDE = 0x1_0000  # how far apart we put them
VIRTIO_MMIO_BASE = 0xD000_0000
VIRTIO_MMIO_STRIDE = PAGE
VIRTIO_MMIO_SIZE = 0x200
PCI_ECAM = 0xE000_0000
PCI_ECAM_SIZE = 0x10_0000  # bus 0
IOAPIC_BASE = 0xFEC0_0000
LAPIC_BASE = 0xFEE0_0000
KVM_IDENTITY_MAP = 0xFFFB_C000
KVM_TSS = 0xFFFB_D000
ABOVE_4G = 0x1_0000_0000
PCI_HIGH_BARS_SIZE = 1 << 30

# Ports.
PORT_CMOS = 0x70
PORT_I8042 = 0x60  # data; status and command at +4
PORT_DEBUG_EXIT = 0xF4
PORT_COM1 = 0x3F8
PORT_DEBUG_CONSOLE = 0xE9
PORT_PVPANIC = 0x505
PORT_ACPI_PM = 0x600
PORT_PCI_CONFIG = 0xCF8  # address; data at +4

# Interrupts (GSI = ISA IRQ below 16).
IRQ_KEYBOARD = 1
IRQ_GENERATION = 3
IRQ_COM1 = 4
IRQ_RTC = 8
IRQ_SCI = 9
VIRTIO_GSIS = (5, 6, 7, 10, 11, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)
PCI_GSIS = (16, 17, 18, 19, 20, 21, 22, 23)  # INTA# of the slots, in turn: levels, shared
PCI_SLOTS = 31  # besides the host bridge
IOAPIC_PINS = 24


def ram_regions(memory_bytes: int) -> tuple[tuple[int, int], ...]:
    """Where *memory_bytes* of RAM lie: `(gpa, size)` pairs, ascending, split around the 32-bit hole."""
    low = min(memory_bytes, LOW_RAM_END)
    if low == memory_bytes:
        return ((0, low),)
    return ((0, low), (ABOVE_4G, memory_bytes - low))


def pci_windows(memory_bytes: int) -> tuple[tuple[int, int], ...]:
    """Where PCI BARs may be: `(gpa, size)` pairs, ascending."""
    gpa, size = ram_regions(memory_bytes)[-1]
    high = -(-max(gpa + size, ABOVE_4G) // PCI_HIGH_BARS_SIZE) * PCI_HIGH_BARS_SIZE
    return ((PCI_BARS, PCI_BARS_SIZE), (high, PCI_HIGH_BARS_SIZE))
