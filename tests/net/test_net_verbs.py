"""`pyvmm net …` as its users type it."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.fakes.host import NOBODY, PYVMM
from tests.fakes.vm import running
from tests.net.managed import Host, state
from vmm.cli.main import main
from vmm.config import NetConfig

from .namespace import ip

pytestmark = pytest.mark.net


class Verbs:
    """Runs `pyvmm net`, and keeps what it printed."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture
        self.said = ""

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """What it prints; what it says beside that is in `said`."""
        assert main(["net", *arguments]) == code
        printed = self._capture.readouterr()
        self.said = printed.err
        return printed.out


@pytest.fixture
def net(host: Host, capsys: pytest.CaptureFixture[str]) -> Verbs:
    return Verbs(capsys)


def test_help(net: Verbs) -> None:
    for verb in ("create", "list", "show", "attach", "detach", "repair", "capture", "delete"):
        assert f"  {verb} " in net()
        assert net(verb, "--help").startswith(f"usage: pyvmm net {verb}")


def test_a_network_comes_and_goes(net: Verbs, host: Host) -> None:
    before = state(host)
    assert net("create", "lab", "--nat") == "network lab: 10.77.0.0/24; join it with --net lab\n"
    assert net("list").splitlines()[1].split() == ["lab", "nat", "10.77.0.0/24", "0", "up"]
    assert net("delete", "lab") == ""
    assert state(host) == before


def test_the_picture_shows_guests(net: Verbs) -> None:
    net("create", "lab", "--nat")
    assert net("attach", "lab", "web1") == ("web1: tap pyvmm-77eba3b9, mac 52:54:77:eb:a3:b9, address 10.77.0.245\n")
    assert "up0 ── nat ── lab  10.77.0.1/24\n" in net("show", "lab")
    shown = json.loads(net("show", "lab", "--format", "json"))
    assert [(guest["name"], guest["address"]) for guest in shown["guests"]] == [("web1", "10.77.0.245")]
    assert shown["uplinks"] == ["up0"]
    net("detach", "lab", "web1")
    assert json.loads(net("list", "--format", "json"))["networks"][0]["guests"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("create", "new", "--nat", "--ipv6", "auto", "--qos", "rate=1M"),
        ("attach", "lab", "web2", "--qos", "rate=1M,burst=64K"),
        ("detach", "lab", "web1"),
        ("repair",),
        ("delete", "lab"),
    ],
)
def test_a_dry_run_says_much_and_does_nothing(net: Verbs, host: Host, arguments: tuple[str, ...]) -> None:
    net("create", "lab", "--nat")
    net("attach", "lab", "web1")
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    before = state(host)
    assert net(*arguments, "--dry-run").splitlines()
    assert state(host) == before


def test_what_is_missing_of_a_guest_is_shown(net: Verbs) -> None:
    net("create", "lab", "--nat")
    net("attach", "lab", "web1")
    ip("link del pyvmm-77eba3b9")
    assert net("list").splitlines()[1].split()[-1] == "broken"
    assert "\nMISSING  tap pyvmm-77eba3b9\nrun: sudo pyvmm net repair lab\n" in net("show", "lab")


def test_a_guest_on_the_hosts_own_network_has_no_address_of_ours(net: Verbs) -> None:
    net("create", "lab", "--physical", "up0")
    assert net("attach", "lab", "web1") == "web1: tap pyvmm-77eba3b9, mac 52:54:77:eb:a3:b9\n"
    net("delete", "lab")


def test_repair_says_what_it_made(net: Verbs) -> None:
    net("create", "lab", "--nat")
    assert net("repair") == "network lab: all is as it should be\n"
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert net("show", "lab").endswith("run: sudo pyvmm net repair lab\n")
    assert net("repair") == "network lab: made nftables table inet pyvmm-lab\n"


def test_a_firewall_in_the_way_is_told_of(net: Verbs) -> None:
    policy = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }"
    subprocess.run(["nft", policy], check=True)
    net("create", "lab", "--nat")
    assert net.said == (
        "pyvmm: the firewall's chain ip filter FORWARD drops what it does not know: "
        "if guests do not get out, let it accept lab\n"
    )


def test_a_capture_is_a_file(net: Verbs, host: Host) -> None:
    net("create", "lab", "--nat")
    net("capture", "lab", "--seconds", "0.1", "--output", f"{host.directory}/lab.pcap")
    assert net.said.startswith("pyvmm: capturing lab; Ctrl-C ends it\n")
    with open(f"{host.directory}/lab.pcap", "rb") as file:
        assert file.read(4) == b"\x4d\x3c\xb2\xa1"


@pytest.mark.root
def test_an_ordinary_user_sees_what_they_may(net: Verbs) -> None:
    net("create", "lab", "--nat")

    def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*NOBODY, PYVMM, "net", *arguments], capture_output=True, text=True, check=False)

    assert as_nobody("list").stdout.splitlines()[1].split()[-1] == "up"
    shown = as_nobody("show", "lab").stdout
    assert "\n?        nftables table inet pyvmm-lab\nok       IPv4 forwarding\n" in shown
    refused = as_nobody("repair", "lab", "--dry-run")
    assert (refused.returncode, refused.stderr) == (
        125,
        "pyvmm: network lab: cannot see all of it\n  run it with sudo\n",
    )


def test_a_guest_is_captured_by_its_name(net: Verbs, host: Host) -> None:
    for network in ("lab", "lab2"):
        net("create", network, "--nat")
        net("attach", network, "db")
    net("attach", "lab", "web1")
    for what in ("web1", "lab/web1"):
        net("capture", what, "--seconds", "0.1", "--output", f"{host.directory}/web1.pcap")
        assert net.said.startswith("pyvmm: capturing pyvmm-77eba3b9; Ctrl-C ends it\n")
    net("capture", "db", code=2)
    assert net.said == "pyvmm: pyvmm net capture db: several networks have that guest\n  one of lab/db, lab2/db\n"


@pytest.mark.usefixtures("no_others")
def test_a_vm_is_captured_by_its_name(net: Verbs, host: Host) -> None:
    net("create", "lab", "--nat")
    nameless = NetConfig(network="lab")
    with running("shop", nameless), running("both", nameless, nameless), running("none"):
        net("capture", "shop", "--seconds", "0.1", "--output", f"{host.directory}/shop.pcap")
        assert net.said.startswith("pyvmm: capturing pyvmm0; Ctrl-C ends it\n")
        for name, cards in (("both", "several cards, pyvmm1, pyvmm2"), ("none", "no card that has a tap here")):
            net("capture", name, code=2)
            assert net.said == f"pyvmm: VM {name}: has {cards}\n  capture a network, or NETWORK/GUEST\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fly"], "pyvmm net fly: there is no such verb"),
        (["create"], "pyvmm net create: takes NAME\n  pyvmm net create --help"),
        (["show", "lab", "--colour"], "--colour: there is no such option\n  pyvmm net show --help lists them all"),
        (["create", "lab"], "pyvmm net create lab: what kind of network?\n  --nat, or --physical NIC"),
        (["create", "Lab", "--nat"], "pyvmm net: 'Lab' cannot be the name of a network"),
        (["create", "lab", "--nat", "--subnet", "x"], "--subnet: 'x' is no subnet"),
        (["create", "lab", "--nat", "--subnet", "192.0.2.0/25"], "--subnet: 192.0.2.0/25 overlaps the host's route"),
        (["create", "lab", "--nat", "--qos", "10M"], "--qos: is written rate=RATE[,burst=SIZE]"),
        (["create", "lab", "--nat", "--qos", "rate=8G"], "--qos: rate=8589934592 is more than"),
        (["create", "lab", "--nat", "--qos", "rate=20K"], "--qos: burst=2048 lets no large frame through"),
        (["show", "lab"], "network lab: there is no such network\n  run: sudo pyvmm net create lab --nat"),
        (["attach", "lab", "web1"], "network lab: there is no such network"),
        (["delete", "lab"], "network lab: there is no such network"),
        (["list", "--format", "xml"], "--format: 'xml' is no format"),
        (["capture", "lab"], "lab: is neither a network, a guest of one, nor a running VM\n  run: pyvmm net list, p"),
    ],
)
def test_mistakes(net: Verbs, arguments: list[str], message: str) -> None:
    net(*arguments, code=2)
    assert net.said.startswith(f"pyvmm: {message}")
