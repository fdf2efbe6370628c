"""What a boot comes to: pieces of memory and the state of the first vCPU."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Bytes = bytes | bytearray | memoryview
    #: Bytes and the guest-physical address they belong at.
    Piece = tuple[int, Bytes]


class Segment:
    """A segment register with its hidden part (Intel SDM 3A §3.4.3). The limit is in bytes, always present, DPL 0."""

    __slots__ = ("base", "code64", "db", "granular", "limit", "s", "selector", "type")

    def __init__(
        self, selector: int, type_: int, *, limit: int = 0xFFFF_FFFF, s: int = 1, code64: int = 0, db: int = 0
    ) -> None:
        self.selector, self.type, self.limit = selector, type_, limit
        self.base = 0
        self.s = s  # 1: code or data, 0: system (TSS)
        self.code64 = code64  # the L bit
        self.db = db
        self.granular = int(limit > 0xF_FFFF)


class EntryState:
    """The registers of the first vCPU at the kernel's first instruction; what is not named is zero.

    `data` goes into DS, ES, FS, GS and SS. RFLAGS is 2 (interrupts off), the IDT limit 0, the LDT unusable.
    """

    __slots__ = (
        "code", "cr0", "cr3", "cr4", "data", "efer", "gdt_base", "gdt_limit", "rbx", "rip", "rsi", "rsp", "task",
    )  # fmt: skip

    def __init__(
        self,
        *,
        rip: int,
        rsp: int,
        cr0: int,
        code: Segment,
        data: Segment,
        task: Segment,
        gdt_base: int,
        gdt_limit: int,
        rbx: int = 0,
        rsi: int = 0,
        cr3: int = 0,
        cr4: int = 0,
        efer: int = 0,
    ) -> None:
        self.rip, self.rsp, self.rbx, self.rsi = rip, rsp, rbx, rsi
        self.cr0, self.cr3, self.cr4, self.efer = cr0, cr3, cr4, efer
        self.code, self.data, self.task = code, data, task
        self.gdt_base, self.gdt_limit = gdt_base, gdt_limit


class LoadedKernel:
    """A kernel put in place: *pieces* in guest RAM, which is zero where its BSS is; *end* is what comes after it.

    *entry* is a guest-physical address; *init_header* the setup header for `boot_params`, empty where the kernel
    has none.
    """

    __slots__ = ("end", "entry", "init_header", "pieces")

    def __init__(self, pieces: list[Piece], end: int, entry: int, init_header: bytes) -> None:
        self.pieces, self.end, self.entry, self.init_header = pieces, end, entry, init_header


class BootPlan:
    """Everything the composition root needs to start a kernel.

    Copy *pieces* into guest RAM at once and let the plan go: they may be views of mapped files, and a file that is
    cut short while it is mapped kills the process that reads it. All of them are guest RAM and overlap nowhere; the
    rest of the RAM has to be zero.
    """

    __slots__ = ("description", "entry", "pieces")

    def __init__(self, pieces: list[Piece], entry: EntryState, description: str) -> None:
        self.pieces, self.entry, self.description = pieces, entry, description
