"""The flat segments that `SYSCALL` and `SYSRET` load without looking at any table (Intel SDM 2B, AMD APM 3)."""

from __future__ import annotations

from vmm.kvm import abi

_CODE, _DATA = 11, 3  # execute/read and read/write, both accessed


def load_code(segment: abi.kvm_segment, selector: int, dpl: int, *, long: bool) -> None:
    """Make *segment* a flat code segment of privilege *dpl*; *long* = 64-bit, else 32-bit."""
    _load(segment, selector, dpl, _CODE)
    segment.l, segment.db = long, not long


def load_stack(segment: abi.kvm_segment, selector: int, dpl: int) -> None:
    """Make *segment* a flat data segment of privilege *dpl*."""
    _load(segment, selector, dpl, _DATA)
    segment.l, segment.db = 0, 1


def _load(segment: abi.kvm_segment, selector: int, dpl: int, kind: int) -> None:
    segment.selector, segment.base, segment.limit = selector, 0, 0xFFFF_FFFF
    segment.type, segment.s, segment.dpl, segment.present = kind, 1, dpl, 1
    segment.g, segment.avl, segment.unusable = 1, 0, 0
