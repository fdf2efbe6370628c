"""What a machine is to be: frozen values, checked when they are made. Pure: nothing is opened here."""

from __future__ import annotations

from vmm.errors import ConfigError
from vmm.layout import PAGE, PCI_SLOTS, VIRTIO_GSIS
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
TRANSPORTS = ("mmio", "pci")
ENGINES = ("native", "python")
CONSOLES = ("serial", "virtio")
CACHE_MODES = ("writeback", "none", "unsafe")
WRITE_ERRORS = ("report", "stop")
DISK_QUEUES_MAX = 16
BOOT_PROTOCOLS = ("auto", "bzimage", "elf", "pvh")
_MTU_MIN, _MTU_MAX = 68, 65535
NET_QUEUES_MAX = 16
VLAN_TRUNK, _VLAN_MAX = 0xFFFF, 4094
_OVERLAY = "overlay="
_FORWARD = "hostfwd="
_FORWARD_FIX = "such as hostfwd=tcp:2222-:22, or hostfwd=tcp:0.0.0.0:2222-:22 for all of the host's addresses"
_CID_MIN, _CID_MAX = 3, 0xFFFF_FFFE  # those below are the hypervisor's, the loopback's and the host's
_TIMEOUT_MAX_S = 1e9
_RATE_UNITS, _RATE_DIGITS = {"K": 1 << 10, "M": MIB, "G": 1 << 30}, 9
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


class Rate(Value):
    """So many a second; what is not used is saved up, to *burst* at most."""

    per_second: int
    burst: int


class DiskConfig(Value):
    """A raw image as a virtio-blk disk. `docs/guide.md` tells the options; None is no limit.

    *overlay*: the path is that of an overlay, whose base is where it was, or at *base*; with *base* it is made if it is
    not there. *snapshot*: what is written is thrown away at the end.
    """

    path: str
    overlay: bool = False
    base: str = ""
    snapshot: bool = False
    readonly: bool = False
    serial: str = ""
    cache: str = "writeback"
    discard: bool = True
    queues: int = 1
    iops: Rate | None = None
    bw: Rate | None = None
    werror: str = "report"

    def validate(self) -> None:
        for name, value, choices in (("cache", self.cache, CACHE_MODES), ("werror", self.werror, WRITE_ERRORS)):
            if value not in choices:
                raise ConfigError(f"{name}={value} is none of {', '.join(choices)}", where="--disk")
        if not 1 <= self.queues <= DISK_QUEUES_MAX:
            raise ConfigError(f"queues={self.queues} is not within 1 … {DISK_QUEUES_MAX}", where="--disk")
        if self.base and not self.overlay:
            raise ConfigError(
                "base= is for overlays", where="--disk", fix=f"such as --disk overlay=work.cow,base={self.base}"
            )
        if self.snapshot and self.readonly:
            raise ConfigError("readonly and snapshot=on exclude each other", where="--disk")
        if self.cache == "none" and (self.overlay or self.snapshot):
            raise ConfigError("cache=none is for raw images, not for overlays and snapshot=on", where="--disk")


class NetLimits(Value):
    """Limits of a card's traffic, seen from the guest: bytes (`bw`) and frames (`pps`); None is no limit."""

    rx_bw: Rate | None = None
    rx_pps: Rate | None = None
    tx_bw: Rate | None = None
    tx_pps: Rate | None = None


class Forward(Value):
    """What comes to *host_port* at the host's *address* goes to the guest's *guest_port*; *protocol* is tcp or udp."""

    protocol: str
    address: str
    host_port: int
    guest_port: int

    def validate(self) -> None:
        if self.protocol not in ("tcp", "udp"):
            raise ConfigError(f"{self.protocol!r} is neither tcp nor udp", where="--net hostfwd=", fix=_FORWARD_FIX)
        numbers = self.address.split(".")
        if len(numbers) != 4 or not all(n.isascii() and n.isdigit() and int(n) <= 255 for n in numbers):
            raise ConfigError(f"{self.address!r} is no IPv4 address", where="--net hostfwd=", fix=_FORWARD_FIX)
        for port in (self.host_port, self.guest_port):
            if not 1 <= port <= 65535:
                raise ConfigError(f"port {port} is not within 1 … 65535", where="--net hostfwd=")


class NetConfig(Value):
    """A virtio-net card on the managed *network*, on a new tap of *bridge*, or on the existing tap *tap*; without any
    right on the *lan* of that name, behind passt (*user*), or on the best of all that may be had (*auto*).

    *name* is the guest's on the network or lan; *private* puts it behind a NAT of its own. On a lan, *vlan* is its VLAN
    (0: none, `VLAN_TRUNK`: all), and *pcap* a file to record into. *mac* None: made up from the name or the place.
    """

    network: str = ""
    name: str = ""
    private: bool = False
    bridge: str = ""
    tap: str = ""
    lan: str = ""
    vlan: int = 0
    pcap: str = ""
    user: bool = False
    forwards: tuple[Forward, ...] = ()
    auto: bool = False
    mac: bytes | None = None
    mtu: int | None = None
    queues: int = 1
    limits: NetLimits = NetLimits()

    def validate(self) -> None:
        if not 1 <= self.queues <= NET_QUEUES_MAX:
            raise ConfigError(f"queues={self.queues} is not within 1 … {NET_QUEUES_MAX}", where="--net")
        places = (self.network, self.bridge, self.tap, self.lan, self.user, self.auto)
        if sum(map(bool, places)) != 1:
            raise ConfigError(
                "needs one of NETWORK, bridge=NAME, tap=NAME, lan=NAME, user and auto",
                where="--net",
                fix="such as --net bridge=br0",
            )
        if self.queues > 1 and (self.lan or self.user or self.auto):
            raise ConfigError("queues= is for networks of the kernel: NETWORK, bridge= and tap=", where="--net")
        if (self.vlan or self.pcap) and not self.lan:
            raise ConfigError("vlan= and pcap= are for lan=NAME", where="--net", fix="such as --net lan=lab,vlan=5")
        if not 0 <= self.vlan <= _VLAN_MAX and self.vlan != VLAN_TRUNK:
            raise ConfigError(f"vlan={self.vlan} is not within 1 … {_VLAN_MAX}", where="--net", fix="or vlan=trunk")
        if self.forwards and not self.user:
            raise ConfigError("hostfwd= is for user", where="--net", fix="such as --net user,hostfwd=tcp:2222-:22")
        if self.name and not (self.network or self.lan):
            raise ConfigError(
                "name= is for networks of pyvmm net and lan=NAME", where="--net", fix="such as --net lab,name=web1"
            )
        if self.private and not self.network:
            raise ConfigError(
                "private=yes is for networks of pyvmm net", where="--net", fix="such as --net nat,private=yes"
            )
        if self.mtu is not None and not _MTU_MIN <= self.mtu <= _MTU_MAX:
            raise ConfigError(f"mtu={self.mtu} is not within {_MTU_MIN} … {_MTU_MAX}", where="--net")


class VsockConfig(Value):
    """A virtio-vsock device: the guest is number *cid*, and its sockets are reached through the Unix socket *path*.

    Without one it is `vsock.sock` in the VM's own directory, where `pyvmm exec` looks for it.
    """

    path: str = ""
    cid: int = 3

    def validate(self) -> None:
        if not _CID_MIN <= self.cid <= _CID_MAX:
            raise ConfigError(f"cid={self.cid} is not within {_CID_MIN} … {_CID_MAX}", where="--vsock")


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
    vsock: VsockConfig | None = None
    transport: str = "mmio"
    engine: str | None = None
    serial: str = "stdio"
    console: str = "serial"
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
        if self.transport not in TRANSPORTS:
            raise ConfigError(f"{self.transport!r} is no transport", where="--transport", fix=", ".join(TRANSPORTS))
        if self.engine not in (None, *ENGINES):
            raise ConfigError(f"{self.engine!r} is no engine", where="--engine", fix=", ".join(ENGINES))
        if self.console not in CONSOLES:
            raise ConfigError(f"{self.console!r} is no console", where="--console", fix=", ".join(CONSOLES))
        others = 1 + (self.console == "virtio") + (self.vsock is not None)  # the 1 is the entropy device
        devices = len(self.disks) + len(self.nets) + others
        most = PCI_SLOTS if self.transport == "pci" else len(VIRTIO_GSIS)
        if devices > most:
            raise ConfigError(
                f"{len(self.disks)} disks and {len(self.nets)} network cards are {devices - most} "
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
        if self.serial not in ("stdio", "quiet", "null") and not self.serial.startswith("file:"):
            raise ConfigError(
                f"{self.serial!r} is no serial port", where="--serial", fix="stdio, quiet, file:PATH or null"
            )
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


def parse_rate(text: str, where: str) -> Rate:
    """`RATE[/BURST]`: so many a second, and so many at once (else what comes in a tenth of a second).

    Both are numbers, with the unit K, M or G for 2^10, 2^20 or 2^30.

    Raises:
        ConfigError: it is no such text.
    """
    rate, slash, burst = text.partition("/")
    per_second = _count(rate, where)
    saved = _count(burst, where) if slash else max(1, per_second // 10)
    if not per_second or not saved:
        raise ConfigError(f"{text!r} lets nothing through", where=where, fix="such as 10M, or 10M/50M with a burst")
    return Rate(per_second=per_second, burst=saved)


def parse_disk(text: str) -> DiskConfig:
    """`PATH[,readonly][,serial=TEXT][,cache=…][,discard=on|off][,queues=N][,iops=RATE][,bw=RATE][,werror=…]`.

    Or `overlay=PATH[,base=PATH]…`, and `[,snapshot=on|off]`. A comma in the path is written twice.

    Raises:
        ConfigError: an option is unknown, has no value or a wrong one.
    """
    path, *options = _parts(text)
    if not path.removeprefix(_OVERLAY):
        raise ConfigError("names no image", where="--disk", fix="such as --disk root.img")
    names = ("serial", "cache", "discard", "queues", "iops", "bw", "werror", "snapshot", "base")
    values = _options(options, "--disk", {"readonly": False, **dict.fromkeys(names, True)})
    for name in ("discard", "snapshot"):
        if values.get(name, "on") not in ("on", "off"):
            raise ConfigError(f"{name}={values[name]} is neither on nor off", where="--disk")
    return DiskConfig(
        path=path.removeprefix(_OVERLAY),
        overlay=path.startswith(_OVERLAY),
        base=values.get("base", ""),
        snapshot=values.get("snapshot") == "on",
        readonly="readonly" in values,
        serial=values.get("serial", ""),
        cache=values.get("cache", "writeback"),
        discard=values.get("discard", "on") == "on",
        queues=_number(values["queues"], "--disk", "queues=2") if "queues" in values else 1,
        iops=parse_rate(values["iops"], "--disk iops=") if "iops" in values else None,
        bw=parse_rate(values["bw"], "--disk bw=") if "bw" in values else None,
        werror=values.get("werror", "report"),
    )


def parse_net(text: str) -> NetConfig:
    """`NETWORK[,name=GUEST]`, `bridge=NAME`, `tap=NAME`, `lan=NAME[,name=GUEST][,vlan=N|trunk][,pcap=FILE]`,
    `user[,hostfwd=…]…` or `auto`; then `[,mac=…][,mtu=…][,queues=N]`, limits `[,rx_bw=RATE]…`.

    Raises:
        ConfigError: an option is unknown, has no value or a wrong one.
    """
    parts = text.split(",")
    places = ("name", "private", "bridge", "tap", "lan", "vlan", "pcap")
    names = (*places, "mac", "mtu", "queues", *NetLimits.__annotations__)
    known = {"user": False, "auto": False, **dict.fromkeys(names, True)}
    network = parts.pop(0) if "=" not in parts[0] and parts[0] not in known else ""
    forwards = [part for part in parts if part.startswith(_FORWARD)]
    values = _options([part for part in parts if part not in forwards], "--net", known | {"hostfwd": True})
    vlan = values.get("vlan", "0")
    if values.get("private", "no") not in ("yes", "no"):
        raise ConfigError(f"private={values['private']} is neither yes nor no", where="--net")
    limits = {name: parse_rate(values[name], f"--net {name}=") for name in NetLimits.__annotations__ if name in values}
    return NetConfig(
        network=network,
        name=values.get("name", ""),
        private=values.get("private") == "yes",
        bridge=values.get("bridge", ""),
        tap=values.get("tap", ""),
        lan=values.get("lan", ""),
        vlan=VLAN_TRUNK if vlan == "trunk" else _number(vlan, "--net", "vlan=5"),
        pcap=values.get("pcap", ""),
        user="user" in values,
        forwards=tuple(_forward(part.removeprefix(_FORWARD)) for part in forwards),
        auto="auto" in values,
        mac=parse_mac(values["mac"], where="--net") if "mac" in values else None,
        mtu=_number(values["mtu"], "--net", "mtu=1500") if "mtu" in values else None,
        queues=_number(values["queues"], "--net", "queues=2") if "queues" in values else 1,
        limits=NetLimits(**limits),
    )


def parse_vsock(text: str) -> VsockConfig:
    """`PATH[,cid=N]`, or `auto` for the path. A comma in the path is written twice.

    Raises:
        ConfigError: an option is unknown, has no value or a wrong one.
    """
    path, *options = _parts(text)
    if not path:
        raise ConfigError("names no socket", where="--vsock", fix="such as --vsock guest.sock")
    values = _options(options, "--vsock", {"cid": True})
    return VsockConfig(
        path="" if path == "auto" else path, **({"cid": _number(values["cid"], "--vsock", "cid=3")} if values else {})
    )


def _forward(text: str) -> Forward:
    """`PROTOCOL:[ADDRESS:]PORT-:PORT`: the host's, then the guest's."""
    protocol, _, rest = text.partition(":")
    host, _, guest = rest.partition("-:")
    address, _, port = host.rpartition(":")
    return Forward(
        protocol=protocol,
        address=address or "127.0.0.1",
        host_port=_number(port, "--net hostfwd=", _FORWARD + "tcp:2222-:22"),
        guest_port=_number(guest, "--net hostfwd=", _FORWARD + "tcp:2222-:22"),
    )


def parse_trace(text: str) -> frozenset[str]:
    """The kinds named in *text*, separated by commas."""
    return frozenset(kind for kind in text.split(",") if kind)


def _count(text: str, where: str) -> int:
    unit = text[-1:].upper()
    digits = text[:-1] if unit in _RATE_UNITS else text
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _RATE_DIGITS):
        raise ConfigError(f"{text!r} is no rate", where=where, fix="such as 10M, or 10M/50M with a burst")
    return int(digits) * _RATE_UNITS.get(unit, 1)


def _number(text: str, where: str, example: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{text!r} is no number", where=where, fix=f"such as {example}")
    return int(text)


def _parts(text: str) -> list[str]:
    """What is between the commas of *text*; one that is written twice is a comma of a part."""
    return [part.replace("\0", ",") for part in text.replace(",,", "\0").split(",")]


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
