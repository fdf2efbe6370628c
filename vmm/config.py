"""What a machine is to be: frozen values, checked when they are made. Pure: nothing is opened here."""

from __future__ import annotations

from vmm.errors import ConfigError
from vmm.layout import PAGE, VIRTIO_GSIS
from vmm.mac import parse_mac
from vmm.trace import TRACE_KINDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, dataclass_transform
else:

    def dataclass_transform(**_: bool) -> Callable[[type], type]:
        return lambda cls: cls


MIB = 1 << 20
MEMORY_MIN, MEMORY_MAX = 16 * MIB, 4 << 40  # KVM takes less than 8 TiB in one piece
MEMORY_DEFAULT = 256 * MIB
CPUS_MAX = 64
BOOT_PROTOCOLS = ("auto", "bzimage", "elf", "pvh")
_MTU_MIN, _MTU_MAX = 68, 65535
_TIMEOUT_MAX_S = 1e9
_UNITS = {"": MIB, "K": 1 << 10, "M": MIB, "G": 1 << 30, "T": 1 << 40}


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Value:
    """What a frozen, keyword-only dataclass is, without that module, whose import takes 10 ms of a VM's start.

    The fields are the names that the class annotates; what it assigns to them are the defaults.
    """

    def __init__(self, **fields: Any) -> None:
        names = type(self).__annotations__
        if not names.keys() >= fields.keys():
            raise TypeError(f"{type(self).__name__} has no field {', '.join(fields.keys() - names.keys())}")
        for name in names:
            if name not in fields and not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} needs {name}=")
            self.__dict__[name] = fields[name] if name in fields else getattr(type(self), name)
        self.validate()

    def validate(self) -> None:
        """Raise `ConfigError` where the fields cannot be or do not go together."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is frozen")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class DiskConfig(Value):
    """A raw image as a virtio-blk disk."""

    path: str
    readonly: bool = False
    serial: str = ""


class NetConfig(Value):
    """A virtio-net card on a new tap of *bridge*, or on the existing tap *tap*; *mac* None: made up from its place."""

    bridge: str = ""
    tap: str = ""
    mac: bytes | None = None
    mtu: int | None = None

    def validate(self) -> None:
        if bool(self.bridge) == bool(self.tap):
            raise ConfigError("needs either bridge=NAME or tap=NAME", where="--net", fix="such as --net bridge=br0")
        if self.mtu is not None and not _MTU_MIN <= self.mtu <= _MTU_MAX:
            raise ConfigError(f"mtu={self.mtu} is not within {_MTU_MIN} … {_MTU_MAX}", where="--net")


class MachineConfig(Value):
    """One machine. Sizes in bytes, times in seconds."""

    kernel: str
    initrd: str | None = None
    append: str = ""
    boot: str = "auto"
    kaslr: bool = False
    cpus: int = 1
    memory_bytes: int = MEMORY_DEFAULT
    disks: tuple[DiskConfig, ...] = ()
    nets: tuple[NetConfig, ...] = ()
    serial: str = "stdio"
    reboot: bool = True
    timeout_s: float | None = None
    trace: frozenset[str] = frozenset()

    def validate(self) -> None:
        if not 1 <= self.cpus <= CPUS_MAX:
            raise ConfigError(f"{self.cpus} is not within 1 … {CPUS_MAX}", where="--cpus")
        if self.boot not in BOOT_PROTOCOLS:
            raise ConfigError(f"{self.boot!r} is no way to boot", where="--boot", fix=", ".join(BOOT_PROTOCOLS))
        if not MEMORY_MIN <= self.memory_bytes <= MEMORY_MAX:
            raise ConfigError(
                f"{self.memory_bytes // MIB} MiB is not within {MEMORY_MIN >> 20} MiB … {MEMORY_MAX >> 40} TiB",
                where="--memory",
            )
        if self.memory_bytes % PAGE:
            raise ConfigError(f"{self.memory_bytes} bytes are no whole number of pages of 4 KiB", where="--memory")
        if self.timeout_s is not None and not 0 < self.timeout_s <= _TIMEOUT_MAX_S:
            raise ConfigError(f"must be more than 0 and at most {_TIMEOUT_MAX_S:.0f} seconds", where="--timeout")
        devices = len(self.disks) + len(self.nets) + 1  # and the entropy device
        if devices > len(VIRTIO_GSIS):
            raise ConfigError(
                f"{len(self.disks)} disks and {len(self.nets)} network cards are {devices - len(VIRTIO_GSIS)} "
                "too many for one machine",
                where="--disk, --net",
            )
        unknown = self.trace - set(TRACE_KINDS)
        if unknown:
            raise ConfigError(
                f"{', '.join(sorted(unknown))} cannot be traced",
                where="--trace",
                fix=f"one of {', '.join(TRACE_KINDS)}",
            )
        if self.serial not in ("stdio", "null") and not self.serial.startswith("file:"):
            raise ConfigError(f"{self.serial!r} is no serial port", where="--serial", fix="stdio, file:PATH or null")
        if self.serial == "file:":
            raise ConfigError("file: names no file", where="--serial", fix="such as --serial file:guest.log")


def parse_size(text: str, where: str = "--memory") -> int:
    """The bytes meant by *text*: a number with the unit K, M, G or T, MiB without one.

    Raises:
        ConfigError: it is no such text.
    """
    number = text.upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    digits = number.removesuffix(unit)
    if not (digits.isascii() and digits.isdigit()):
        raise ConfigError(f"{text!r} is no size", where=where, fix="such as 512M or 2G")
    return int(digits) * _UNITS[unit]


def parse_disk(text: str) -> DiskConfig:
    """`PATH[,readonly][,serial=TEXT]`; a comma in the path is written twice.

    Raises:
        ConfigError: an option is unknown or has no value.
    """
    parts = text.replace(",,", "\0").split(",")
    path, *options = (part.replace("\0", ",") for part in parts)
    if not path:
        raise ConfigError("names no image", where="--disk", fix="such as --disk root.img")
    values = _options(options, "--disk", {"readonly": False, "serial": True})
    return DiskConfig(path=path, readonly="readonly" in values, serial=values.get("serial", ""))


def parse_net(text: str) -> NetConfig:
    """`bridge=NAME` or `tap=NAME`, then `[,mac=…][,mtu=…]`.

    Raises:
        ConfigError: an option is unknown, has no value or a wrong one.
    """
    values = _options(text.split(","), "--net", {"bridge": True, "tap": True, "mac": True, "mtu": True})
    mtu = values.get("mtu")
    if mtu is not None and not (mtu.isascii() and mtu.isdigit()):
        raise ConfigError(f"mtu={mtu} is no number", where="--net", fix="such as mtu=1500")
    return NetConfig(
        bridge=values.get("bridge", ""),
        tap=values.get("tap", ""),
        mac=parse_mac(values["mac"], where="--net") if "mac" in values else None,
        mtu=int(mtu) if mtu else None,
    )


def parse_trace(text: str) -> frozenset[str]:
    """The kinds named in *text*, separated by commas."""
    return frozenset(kind for kind in text.split(",") if kind)


def _options(parts: list[str], where: str, takes_value: dict[str, bool]) -> dict[str, str]:
    """`name` and `name=value` parts as a dict; a name's value in *takes_value* says which of the two it is."""
    values: dict[str, str] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in takes_value:
            known = ", ".join(f"{key}=…" if valued else key for key, valued in takes_value.items())
            raise ConfigError(f"{part!r} is unknown", where=where, fix=f"known are {known}")
        if takes_value[name] != bool(equals and value):
            form = f"{name}=VALUE" if takes_value[name] else name
            raise ConfigError(f"{part!r} is written {form}", where=where)
        if name in values:
            raise ConfigError(f"{name} is given twice", where=where)
        values[name] = value
    return values
