"""An nftables firewall, seen from another machine on a network that only this test has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.testing import VM

RULES = (Path(__file__).parent / "firewall.nft").read_bytes()
FETCH = "timeout 10 wget -q -O - http://{host}:{port}/"


@pytest.fixture
def server_and_client(vm_net: Callable[..., list[VM]]) -> list[VM]:
    server, client = vm_net("server", "client")
    server.put(RULES, "/etc/firewall.nft")
    server.run(["nft", "-f", "/etc/firewall.nft"])
    server.put(b"hello", "/www/index.html")
    server.run("httpd -h /www -p 80; httpd -h /www -p 8080")
    return [server, client]


def test_only_the_web_is_reachable(server_and_client: list[VM]) -> None:
    server, client = server_and_client
    assert client.run(FETCH.format(host="server", port=80)).stdout == "hello"
    assert client.run(FETCH.format(host="server", port=8080), check=False).returncode
    assert server.run(FETCH.format(host="127.0.0.1", port=8080)).stdout == "hello"
    assert "dport 80 counter packets 0 " not in server.run("nft list chain ip firewall input").stdout


def test_a_flood_of_pings_is_limited(server_and_client: list[VM]) -> None:
    _, client = server_and_client
    received = client.run("ping -c 40 -A -w 4 server | grep received", check=False).stdout
    assert 0 < int(received.split(" packets received")[0].split()[-1]) < 40


def test_rules_with_an_error_change_nothing(vm: VM) -> None:
    vm.run(["nft", "-f", "-"], input=RULES)
    done = vm.run(["nft", "-f", "-"], input=b"flush ruleset; add rule ip firewall input oops", check=False)
    assert "syntax error" in done.stderr
    assert "tcp dport 80" in vm.run("nft list ruleset").stdout
