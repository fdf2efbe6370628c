"""Hostile kernel files, and the promises of a boot plan.

"Refuse before KVM_RUN with path and reason": whatever the file holds, loading and planning end in a plan or a
`ConfigError`, soon and in bounded memory.
"""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import kernels
from tests.fakes.kernels import LOAD
from vmm import layout
from vmm.boot import acpi, decompress, e820, elf
from vmm.boot.kernel import load_kernel, plan_boot
from vmm.boot.plan import BootPlan
from vmm.config import BOOT_PROTOCOLS
from vmm.errors import ConfigError

MIB = 1 << 20
VMLINUX = kernels.vmlinux()
PAYLOADS = {name: kernels.payload(name, VMLINUX) for name in kernels.COMPRESSIONS}
KERNELS = [VMLINUX, *(kernels.bzimage(payload) for payload in PAYLOADS.values())]
TABLES = acpi.build_tables(2, [(layout.VIRTIO_MMIO_BASE, layout.VIRTIO_MMIO_SIZE, 5)])

INTERESTING = st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0xFFFF_FFFF, 1 << 63, 2**64 - 1])

#: Where the numbers are: of the ELF header and the first program header, and of the setup header.
FIELDS = [*range(0x10, 0x40, 2), *range(0x40, 0x78, 4), 0x1F1, 0x1F4, *range(0x201, 0x268)]


@pytest.fixture(scope="module")
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield os.path.join(directory, "kernel")


def place(path: str, data: bytes) -> str:
    """Put *data* at *path* as a new file: an earlier one may still be mapped."""
    with open(path + ".new", "wb") as file:
        file.write(data)
    os.rename(path + ".new", path)
    return path


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good kernel with numbers of its headers overwritten, bytes flipped, and its end cut off."""
    data = bytearray(draw(st.sampled_from(KERNELS)))
    for _ in range(draw(st.integers(0, 4))):
        size, form = draw(st.sampled_from([(1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q")]))
        offset = draw(st.one_of(st.sampled_from(FIELDS), st.integers(0, 0x280), st.integers(0, len(data) - 8)))
        value = draw(st.one_of(INTERESTING, st.integers(0, 2**64 - 1)))
        struct.pack_into(form, data, offset, value & (1 << 8 * size) - 1)
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(data=mutated(), protocol=st.sampled_from(BOOT_PROTOCOLS), kaslr=st.booleans())
def test_mutated_kernels_are_planned_or_refused(path: str, data: bytes, protocol: str, kaslr: bool) -> None:
    try:
        image = load_kernel(place(path, data), cache_dir=None)
        boot = plan_boot(image, initrd=b"initrd", cmdline="quiet", memory_bytes=128 * MIB, protocol=protocol,
                         kaslr=kaslr, acpi=TABLES)  # fmt: skip
    except ConfigError as error:
        refusal = error
    else:
        check(boot, 128 * MIB)
        return
    assert refusal.what
    assert refusal.where


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=4096))
def test_arbitrary_files_are_refused(path: str, data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        load_kernel(place(path, data), cache_dir=None)
    assert caught.value.where == path


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(kernels.COMPRESSIONS), data=st.data())
def test_mutated_payloads_are_unpacked_or_refused(name: str, data: st.DataObject) -> None:
    payload = bytearray(PAYLOADS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    del payload[data.draw(st.integers(len(payload) // 2, len(payload))) :]
    size = data.draw(st.one_of(st.just(len(VMLINUX)), st.integers(0, 2**32 - 1)))
    payload[-4:] = struct.pack("<I", size)
    try:
        unpacked = decompress.unpack(memoryview(payload), name, "bzImage")
    except ConfigError as error:
        unpacked, where = None, error.where
    if unpacked is None:
        assert where == "bzImage"
    else:
        assert len(unpacked) == size <= decompress.UNPACKED_MAX


@settings(max_examples=300, deadline=None)
@given(notes=st.binary(max_size=200))
def test_arbitrary_notes(notes: bytes) -> None:
    image = elf.parse(memoryview(kernels.elf(notes=notes)), "vmlinux")
    assert image.pvh_entry is None or 0 <= image.pvh_entry < 2**64


@st.composite
def layouts(draw: st.DrawFn) -> bytes:
    """An ELF kernel with up to six segments anywhere."""
    anywhere = st.one_of(st.integers(0, 64 * MIB), st.integers(0, 2**64 - 1))
    segments = []
    for _ in range(draw(st.integers(1, 6))):
        content = bytes(draw(st.integers(0, 0x2000)))
        segments.append((draw(anywhere), content, len(content) + draw(st.sampled_from([0, 1, 0x1234, 1 << 24]))))
    return kernels.elf(segments, entry=segments[0][0], notes=draw(st.sampled_from([b"", kernels.pvh_note(LOAD)])))


@settings(max_examples=400, deadline=None)
@given(
    data=st.one_of(layouts(), st.sampled_from(KERNELS)),
    initrd=st.integers(0, 40 * MIB),
    memory_bytes=st.one_of(st.integers(1, 256), st.sampled_from([3 << 10, (3 << 10) + 1, 8 << 10])).map(MIB.__mul__),
    protocol=st.sampled_from(BOOT_PROTOCOLS),
)
def test_plans_keep_their_promises(path: str, data: bytes, initrd: int, memory_bytes: int, protocol: str) -> None:
    options = {"initrd": bytes(initrd), "cmdline": "quiet", "protocol": protocol, "kaslr": False, "acpi": TABLES}
    try:
        image = load_kernel(place(path, data), cache_dir=None)
        boot = plan_boot(image, memory_bytes=memory_bytes, **options)  # type: ignore[arg-type]
    except ConfigError as error:
        if error.where == "--memory":
            least = int(error.fix.removeprefix("use at least --memory ").removesuffix("M")) * MIB
            assert least > memory_bytes
            check(plan_boot(image, memory_bytes=least, **options), least)  # type: ignore[arg-type]
    else:
        check(boot, memory_bytes)


def check(boot: BootPlan, memory_bytes: int) -> None:
    """Pieces are RAM, overlap nowhere, and those above 1 MiB are usable; the entry is in a piece."""
    spans = sorted((gpa, gpa + len(data)) for gpa, data in boot.pieces)
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end <= start
    usable = [(gpa, gpa + size) for gpa, size, kind in e820.memory_map(memory_bytes) if kind != e820.RESERVED]
    for start, end in spans:
        assert any(low <= start and end <= high for low, high in usable)
    assert any(gpa <= boot.entry.rip < gpa + len(data) for gpa, data in boot.pieces)
