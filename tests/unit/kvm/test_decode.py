"""The decoder: prefixes, the operand, and what it refuses. `tests/property/test_assist_native.py` has the rest."""

from __future__ import annotations

import pytest

from tests.fakes.vcpu import FakeVcpu
from vmm.kvm import abi
from vmm.kvm.assist.decode import Instruction, Undecodable
from vmm.kvm.assist.instructions import find
from vmm.kvm.assist.probe import SAMPLES


def decode(text: str, **values: int) -> Instruction:
    vcpu = FakeVcpu()
    for name, value in values.items():
        vcpu.regs[abi.REGISTER_NAMES.index(name)] = value
    return Instruction(bytes.fromhex(text), vcpu.regs)


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_what_they_are_called(name: str) -> None:
    ins = decode(SAMPLES[name].hex())
    assert find(ins).name == name
    assert ins.length == len(SAMPLES[name])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("66 f3 0f 38 f6 c1", "adox"),  # F3 wins over 66, in either order
        ("f3 66 0f 38 f6 c1", "adox"),
        ("66 0f 38 f6 c1", "adcx"),
        ("66 f2 0f 38 f1 c1", "crc32"),
        ("f2 66 0f 38 f1 c1", "crc32"),
        ("f2 f3 0f b8 c1", "popcnt"),  # the last of F2 and F3
        ("f3 49 0f b8 c1", "popcnt"),
        ("2e cc", "int3"),
    ],
)
def test_mandatory_prefixes(text: str, name: str) -> None:
    assert find(decode(text)).name == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0f",
        "0f 38",
        "c4",
        "c4 e2",
        "f3 0f b8",
        "f3 0f b8 84",  # no SIB
        "f3 0f b8 84 24 00 00 00",  # three of four bytes of displacement
        "cd",
        "66" * 15 + "cc",  # 16 bytes
        "c4 e0 70 f2 c9",  # VEX map 0
        "c4 e4 70 f2 c9",  # VEX map 4
        "c4 e2 74 f2 c9",  # VEX.L = 1
        "66 c4 e2 70 f2 c9",  # 66 before VEX
        "f3 c4 e2 70 f2 c9",
    ],
)
def test_undecodable(text: str) -> None:
    with pytest.raises(Undecodable):
        decode(text)


@pytest.mark.parametrize(
    "text",
    [
        "f0 f3 0f b8 c1",  # LOCK
        "0f b8 c1",  # without F3: JMPE
        "f2 0f b8 c1",
        "48 c4 e2 70 f2 c9",  # REX before VEX
        "48 66 0f 38 f6 c1",  # a prefix after REX
        "0f 01 cc",
        "0f 38 f2 c1",  # ANDN without VEX
        "f3 0f ae d0",  # wrfsbase, not ldmxcsr
        "90",
    ],
)
def test_not_in_the_table(text: str) -> None:
    with pytest.raises(Undecodable):
        find(decode(text))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("f3 0f b8 00", 0x1000),  # [rax]
        ("f3 0f b8 40 ff", 0xFFF),
        ("f3 0f b8 05 10 00 00 00", 0x4018),  # [rip + 0x10]
        ("f3 0f b8 04 25 00 00 00 80", 0xFFFF_FFFF_8000_0000),
        ("f3 0f b8 04 98", 0x1000 + 4 * 0x20),  # [rax + rbx * 4]
        ("f3 0f b8 04 20", 0x1000),  # no index
        ("f3 42 0f b8 04 20", 0x1000 + 0x300),  # but R12 is one
        ("f3 41 0f b8 45 00", 0x400),  # [r13 + 0]
        ("67 f3 0f b8 40 80", 0xF80),
        ("67 f3 0f b8 80 00 f0 ff ff", 0),
    ],
)
def test_addresses(text: str, address: int) -> None:
    ins = decode(text, rax=0x1000, rbx=0x20, r12=0x300, r13=0x400, rip=0x4000)
    assert ins.address == address


def test_crc32_of_a_byte_register() -> None:
    assert not decode("f2 0f 38 f0 c4").has_rex  # AH
    assert decode("f2 40 0f 38 f0 c4").has_rex  # SPL
