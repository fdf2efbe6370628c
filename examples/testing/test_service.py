"""A service that is started by root, at a port of root's, and is not to stay root."""

from __future__ import annotations

import pytest

from vmm.testing import VM

FETCH = "timeout 10 wget -q -O - http://127.0.0.1/"


@pytest.fixture
def server(vm: VM) -> VM:
    """The VM with the service running; who needs more of it, writes more of this."""
    vm.put(b"hello\n", "/www/index.html")
    vm.put(b"secret\n", "/etc/secret", mode=0o600)
    vm.run(
        "ln -s /etc/secret /www/link; echo web:x:80:80::/www:/bin/false >> /etc/passwd; echo web:x:80: >> /etc/group"
    )
    vm.run("httpd -p 80 -h /www -u web:web")
    return vm


def test_it_answers(server: VM) -> None:
    assert server.run(FETCH).stdout == "hello\n"


def test_it_is_not_root_when_it_serves(server: VM) -> None:
    status = server.run("cat /proc/$(pidof httpd)/status").stdout
    assert "Uid:\t80\t80\t80\t80" in status
    assert server.run(f"{FETCH}link", check=False).returncode


def test_it_answers_after_2038(server: VM) -> None:
    server.run("date -s @2200000000")
    assert server.run(FETCH).stdout == "hello\n"


def test_it_can_be_killed_and_started_again(server: VM) -> None:
    server.run("kill -9 $(pidof httpd)")
    assert server.run(FETCH, check=False).returncode
    server.run("httpd -p 80 -h /www -u web:web")
    assert server.run(FETCH).stdout == "hello\n"
