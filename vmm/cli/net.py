"""`pyvmm net`: managed networks, with or without a VM."""

from __future__ import annotations

import json
import os
import pwd
import signal
import sys
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from vmm.api.client import Client
from vmm.cli.net_picture import picture, table
from vmm.cli.options import Option, Options
from vmm.cli.verb import parse_verb, wants_json
from vmm.config import Rate, parse_rate
from vmm.errors import ConfigError
from vmm.host.net import guests, networks
from vmm.host.net.capture import Capture
from vmm.host.net.create import NatOptions, create_nat, create_physical, plan_nat
from vmm.host.net.link import find_link
from vmm.host.net.network import check_name, parse_subnet, parse_subnet6
from vmm.host.net.nft import foreign_drops
from vmm.host.net.persist import MANAGERS, Persistence, check_manager
from vmm.host.net.physical import Physical, plan_physical
from vmm.host.net.shaping import check_limit
from vmm.host.net.status import status, status_of_all
from vmm.host.net.store import Store
from vmm.host.net.transaction import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

#: Of the JSON form; a key may be added under the same number, but none changed or removed.
JSON_VERSION = 1

_DRY = Option("dry-run", "say what would be done, and do nothing")
_FORMAT = Option("format", "how to print it (text)", metavar="text|json")
_QOS = Option("qos", "limit in bytes a second", metavar="rate=RATE[,burst=SIZE]")
_NAT = (
    Option("nat", "guests reach the world by the host's address"),
    Option("subnet", "the guests' addresses (a free one)", metavar="10.77.0.0/24"),
    Option("ipv6", "IPv6 as well", metavar="auto|fd00:77::/64"),
    _QOS,
)
_PHYSICAL = (
    Option("physical", "guests are on the host's own network, by this device of the host", metavar="NIC"),
    Option("confirm-timeout", "undo it after so long unless it is confirmed (60)", metavar="SECONDS"),
    Option("persist", "what sets it up when the host boots, once it is confirmed", metavar="|".join(MANAGERS)),
    Option("vlan", "not on a bridge of the kernel's: --net lan=NAME has VLANs", metavar="N"),
)
_CONFIRM_TIMEOUT_S, _CONFIRM_LEAST_S, _CONFIRM_MOST_S = 60.0, 1, 3600

_USAGE = """\
usage: pyvmm net VERB …

  create NAME --nat   make a network behind NAT, with DHCP and DNS
  create NAME --physical NIC
                      make a bridge in place of a NIC of the host, on trial
  confirm NAME        end the trial: it stays
  list                all networks
  show NAME           the picture of one
  attach NAME GUEST   make a tap for a guest, which stays
  detach NAME GUEST   take it away, and forget the guest's addresses
  repair [NAME]       mend what is missing, after a reboot or somebody's `nft flush ruleset`
  capture WHAT        frames as pcap: WHAT is a network, a guest, NETWORK/GUEST, or a VM
  delete NAME         take the network away

pyvmm net VERB --help lists a verb's options. A guest joins with: pyvmm … --net NAME[,name=GUEST]
"""


def net(arguments: Sequence[str], say: Callable[[str], None]) -> int:
    """Run `pyvmm net` with *arguments*; the exit code. *say* tells the user something beside the output."""
    verb, rest = (arguments[0], list(arguments[1:])) if arguments else ("--help", [])
    if verb in ("--help", "-h"):
        sys.stdout.write(_USAGE)
        return 0
    if verb not in _VERBS:
        raise ConfigError("there is no such verb", where=f"pyvmm net {verb}", fix=f"one of {', '.join(_VERBS)}")
    operands, table_, run = _VERBS[verb]
    parsed = parse_verb(f"net {verb}", operands, rest, table_)
    if parsed is not None:
        run(*parsed, say)
    return 0


def _create(names: list[str], options: Options, say: Callable[[str], None]) -> None:
    (name,) = names
    check_name(name)
    if options.has("nat") == options.has("physical"):
        raise ConfigError("what kind of network?", where=f"pyvmm net create {name}", fix="--nat, or --physical NIC")
    others = {"nat": _PHYSICAL, "physical": _NAT}["nat" if options.has("nat") else "physical"]
    wrong = next((option.name for option in others if options.has(option.name)), None)
    if wrong:
        raise ConfigError("does not go with this kind of network", where=f"--{wrong}")
    if options.has("nat"):
        _create_nat(name, options, say)
    else:
        _create_physical(name, options, say)


def _create_nat(name: str, options: Options, say: Callable[[str], None]) -> None:
    wanted: NatOptions = {
        "subnet": parse_subnet(options.one("subnet")) if options.has("subnet") else None,
        "subnet6": parse_subnet6(options.one("ipv6")) if options.has("ipv6") else None,
        "limit": _qos(options),
    }
    store = Store()
    if options.has("dry-run"):
        _explain(networks.network_steps(store, plan_nat(store, name, **wanted)))
        return
    network = create_nat(store, name, **wanted)
    for chain in foreign_drops():
        say(f"the firewall's chain {chain} drops what it does not know: if guests do not get out, let it accept {name}")
    subnets = " and ".join(str(subnet) for subnet in (network.subnet, network.subnet6) if subnet)
    sys.stdout.write(f"network {name}: {subnets}; join it with --net {name}\n")


def _create_physical(name: str, options: Options, say: Callable[[str], None]) -> None:
    nic = options.one("physical")
    if options.has("vlan"):
        raise ConfigError(
            "pyvmm has no VLANs on bridges of the kernel", where="--vlan", fix="such as --net lan=NAME,vlan=5 has them"
        )
    timeout_s = options.seconds("confirm-timeout") if options.has("confirm-timeout") else _CONFIRM_TIMEOUT_S
    if timeout_s is not None and not _CONFIRM_LEAST_S <= timeout_s <= _CONFIRM_MOST_S:
        raise ConfigError(f"is not within {_CONFIRM_LEAST_S} … {_CONFIRM_MOST_S} seconds", where="--confirm-timeout")
    persist = check_manager(options.one("persist")) if options.has("persist") else ""
    store = Store()
    if options.has("dry-run"):
        _explain(networks.network_steps(store, plan_physical(name, nic, persist)))
        return
    network = create_physical(store, name, nic, confirm_timeout_s=timeout_s, persist=persist)
    sys.stdout.write(f"network {name}: in place of {nic}; join it with --net {name}\n")
    if network.settings.leased:
        say(f"{nic} has its address by DHCP: let the DHCP client of the host work on {name} from now on")
    say(f"all goes back in {timeout_s:g} seconds, unless you run: sudo pyvmm net confirm {name}")


def _confirm(names: list[str], options: Options, say: Callable[[str], None]) -> None:
    store = Store()
    if options.has("dry-run"):
        network, steps = networks.plan_confirmed(store, names[0])
        _explain(steps)
        sys.stdout.write(f"network {network.name}: would stay\n")
        return
    network = networks.confirm(store, names[0])
    sys.stdout.write(f"network {network.name}: stays\n")
    if isinstance(network, Physical) and network.persist:
        for path in Persistence(network).others():
            say(f"{path} has {network.nic} too: take its addresses and routes out there before the next boot")


def _list(_: list[str], options: Options, say: Callable[[str], None]) -> None:
    as_json, found = wants_json(options, "text"), status_of_all(Store())
    if not found:
        say("there are no networks; this makes one: sudo pyvmm net create lab --nat")
    sys.stdout.write(_json({"networks": found}) if as_json else table(found))


def _show(names: list[str], options: Options, say: Callable[[str], None]) -> None:  # noqa: ARG001
    store = Store()
    there = {network.name: network for network in networks.all_networks(store)}
    if names[0] not in there:
        raise networks.no_network(store, names[0])
    found = status(store, there[names[0]])
    sys.stdout.write(_json(found) if wants_json(options, "text") else picture(found))


def _attach(names: list[str], options: Options, say: Callable[[str], None]) -> None:  # noqa: ARG001
    store = Store()
    network, owner, limit = networks.get_network(store, names[0]), _user(options), _qos(options)
    if options.has("dry-run"):
        guest = guests.plan_guest(store, network, names[1], attached=True, owner=owner, limit=limit)
        _explain(guests.guest_steps(store, network, guest))
        return
    guest = guests.attach(store, network, names[1], owner=owner, limit=limit)
    if wants_json(options, "text"):
        sys.stdout.write(_json(guest.to_json() | {"tap": guest.tap}))
    else:
        address = f", address {guest.address}" if guest.address else ""
        sys.stdout.write(f"{guest.name}: tap {guest.tap}, mac {guest.mac}{address}\n")


def _detach(names: list[str], options: Options, say: Callable[[str], None]) -> None:  # noqa: ARG001
    store = Store()
    network = networks.get_network(store, names[0])
    if options.has("dry-run"):
        _explain_undo(guests.guest_steps(store, network, guests.get_guest(store, network, names[1])))
    else:
        guests.detach(store, network, names[1])


def _delete(names: list[str], options: Options, say: Callable[[str], None]) -> None:  # noqa: ARG001
    store = Store()
    if options.has("dry-run"):
        _explain_undo(networks.all_steps(store, networks.get_network(store, names[0])))
    else:
        networks.delete(store, names[0], force=options.has("force"))


def _repair(names: list[str], options: Options, say: Callable[[str], None]) -> None:  # noqa: ARG001
    store = Store()
    for name in names or store.networks():
        if options.has("dry-run"):
            made = [f"would make {what}" for what in networks.missing(store, name)]
        else:
            made = [f"made {what}" for what in networks.repair(store, name)]
        sys.stdout.write(f"network {name}: {', '.join(made) or 'all is as it should be'}\n")


def _capture(names: list[str], options: Options, say: Callable[[str], None]) -> None:
    store = Store()
    device = _device(store, names[0])
    path, count, seconds = options.one("output", "-"), options.number("count", 0) or None, options.seconds("seconds")
    with closing(Capture(device)) as capture, _interruption() as stop_fd:
        with open(1 if path == "-" else path, "wb", closefd=path != "-") as output:
            say(f"capturing {device}; Ctrl-C ends it")
            written = capture.write(output, count=count, seconds=seconds, stop_fd=stop_fd)
        say(f"{written} frame{'' if written == 1 else 's'}")


def _device(store: Store, what: str) -> str:
    """The device of *what*: a network, a guest of whichever network has one of that name, NETWORK/GUEST, or a VM."""
    network, slash, guest = what.partition("/")
    if not slash and networks.find_network(store, what) is None:
        having = [name for name in store.networks() if what in guests.read_guests(store, name)]
        if len(having) > 1:
            fix = f"one of {', '.join(f'{name}/{what}' for name in having)}"
            raise ConfigError("several networks have that guest", where=f"pyvmm net capture {what}", fix=fix)
        if not having and what not in store.networks():
            return _tap_of_vm(what)
        network, guest = (having[0], what) if having else (what, "")
    found = networks.get_network(store, network)
    return guests.get_guest(store, found, guest).tap if guest else found.name


def _tap_of_vm(name: str) -> str:
    try:
        with Client(name) as vm:
            cards = vm.request("status")["nets"]
    except ConfigError:
        raise ConfigError(
            "is neither a network, a guest of one, nor a running VM", where=name, fix="run: pyvmm net list, pyvmm ps"
        ) from None
    taps: list[str] = [card for card in cards if (link := find_link(card)) and link.is_tap]
    if len(taps) != 1:
        which = f"several cards, {', '.join(taps)}" if taps else "no card that has a tap here"
        raise ConfigError(f"has {which}", where=f"VM {name}", fix="capture a network, or NETWORK/GUEST")
    return taps[0]


@contextmanager
def _interruption() -> Iterator[int]:
    """A descriptor that is readable when the user has enough."""
    alarm, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.set_wakeup_fd(wake)
    try:
        yield alarm
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(alarm)
        os.close(wake)


def _explain(steps: Sequence[Step]) -> None:
    for step in steps:
        sys.stdout.write(f"make {step.what}:\n")
        sys.stdout.writelines(f"    {line}\n" for line in step.describe().splitlines())


def _explain_undo(steps: Sequence[Step]) -> None:
    sys.stdout.writelines(f"take away {step.what}\n" for step in reversed(steps))


def _qos(options: Options) -> Rate | None:
    if not options.has("qos"):
        return None
    parts = dict(part.partition("=")[::2] for part in options.one("qos").split(","))
    if "rate" not in parts or not parts.keys() <= {"rate", "burst"}:
        raise ConfigError("is written rate=RATE[,burst=SIZE]", where="--qos", fix="such as rate=10M,burst=1M")
    text = f"{parts['rate']}/{parts['burst']}" if "burst" in parts else parts["rate"]
    return check_limit(parse_rate(text, "--qos"))


def _user(options: Options) -> int | None:
    if not options.has("user"):
        return None
    try:
        return pwd.getpwnam(options.one("user")).pw_uid
    except KeyError:
        raise ConfigError(f"there is no user {options.one('user')}", where="--user") from None


def _json(document: dict[str, Any]) -> str:
    return json.dumps({"version": JSON_VERSION, **document}, indent=2) + "\n"


#: Each verb's operands (those in brackets may be missing), its options, and what does it.
_VERBS: dict[str, tuple[str, tuple[Option, ...], Callable[[list[str], Options, Callable[[str], None]], None]]] = {
    "create": ("NAME", (*_NAT, *_PHYSICAL, _DRY), _create),
    "confirm": ("NAME", (_DRY,), _confirm),
    "list": ("", (_FORMAT,), _list),
    "show": ("NAME", (_FORMAT,), _show),
    "attach": (
        "NAME GUEST",
        (Option("user", "who may run the guest without being root", metavar="USER"), _QOS, _FORMAT, _DRY),
        _attach,
    ),
    "detach": ("NAME GUEST", (_DRY,), _detach),
    "repair": ("[NAME]", (_DRY,), _repair),
    "capture": (
        "NETWORK|GUEST|VM",
        (
            Option("output", "where to write them (standard output)", metavar="FILE"),
            Option("count", "end after so many frames", metavar="N"),
            Option("seconds", "end after so long", metavar="SECONDS"),
        ),
        _capture,
    ),
    "delete": ("NAME", (Option("force", "even while guests run on it"), _DRY), _delete),
}
