"""`--net NAME` for an ordinary user: by `pyvmm-net-helper`, where root has set it up."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.cli.conftest import Pyvmm, finish
from tests.fakes.guest import HANG, POWER_OFF, say
from tests.fakes.host import KVM_FOR_ALL, NOBODY, private_dev, public_directory
from tests.net.helper import HELPER
from tests.net.namespace import ip, links, network_namespace
from tests.waiting import until

pytestmark = [pytest.mark.kvm, pytest.mark.net, pytest.mark.root]

USER = (*KVM_FOR_ALL, *NOBODY)


@pytest.fixture
def ordinary(cache: str) -> Iterator[Pyvmm]:
    """Runs pyvmm where root has a bridge, and the helper lets user nobody join it; no run leaves a device."""
    with public_directory() as directory, network_namespace():
        ip("link add br0 type bridge")
        ip("link set br0 up")
        runner = Pyvmm(directory, cache)
        allow_list = runner.file("net.toml", b'[[allow]]\nusers = ["nobody"]\nnetworks = ["br0"]\n')
        socket = runner.environment["PYVMM_NET_HELPER"] = os.path.join(directory, "socket")
        runner.may_stay("socket")
        with subprocess.Popen([HELPER, "--listen", socket, "--allow-list", allow_list]) as helper:
            try:
                until(lambda: os.path.exists(socket) and os.stat(socket).st_mode & 0o777 == 0o666)
                yield runner
                until(lambda: links() == {"lo", "br0"})
            finally:
                helper.terminate()
        assert runner.leftovers() == set()


def test_a_card_on_a_bridge(ordinary: Pyvmm) -> None:
    with ordinary.start(*ordinary.guest(say("up\n"), HANG), "--net", "bridge=br0", before=USER) as process:
        assert process.stdout
        process.stdout.readline()
        assert "master br0" in ip("link show pyvmm0")
        process.terminate()
        assert finish(process).code == 123


def test_a_killed_run_leaves_nothing(ordinary: Pyvmm) -> None:
    with ordinary.start(*ordinary.guest(say("up\n"), HANG), "--net", "bridge=br0,queues=2", before=USER) as process:
        assert process.stdout
        process.stdout.readline()
        process.kill()


def test_a_network_that_is_not_allowed(ordinary: Pyvmm) -> None:
    run = ordinary(*ordinary.guest(HANG), "--net", "bridge=br1", before=USER)
    assert run.code == 125
    assert run.messages.splitlines() == [
        f"pyvmm: {ordinary.directory}/net.toml: no line allows user nobody network br1",
        "  line 2 allows user nobody: br0",
        '  root may add: [[allow]] users = ["nobody"] networks = ["br1"]',
    ]


def test_the_doctor_tells_what_may_be_joined(ordinary: Pyvmm) -> None:
    lines = ordinary("doctor", before=USER).output.splitlines()
    assert [line.split(maxsplit=2) for line in lines if "network helper" in line] == [
        ["ok", "useful", "network helper    we may join br0"]
    ]


# Where root has not started it, but lets users do so.


@pytest.fixture
def by_sudo(ordinary: Pyvmm) -> Callable[[str], tuple[str, ...]]:
    """To put before pyvmm: sudo has such a rule, and there is no socket."""
    del ordinary.environment["PYVMM_NET_HELPER"]

    def before(rule: str) -> tuple[str, ...]:
        files = private_dev(
            "mknod -m 666 /dev/kvm c 10 232",
            "mkdir /dev/net && mknod -m 600 /dev/net/tun c 10 200",
            "mkdir -m 755 /dev/etc && cp -a /etc/. /dev/etc && mount --bind /dev/etc /etc",
            f"mkdir -p /etc/pyvmm && cp {ordinary.directory}/net.toml /etc/pyvmm",
            f"printf '%s\\n' 'Defaults secure_path=\"{os.path.dirname(HELPER)}\"' '{rule}' >/etc/sudoers",
            "chmod 440 /etc/sudoers",
        )
        return (*files, *(word for word in NOBODY if word != "--no-new-privs"))  # sudo is set-user-ID

    return before


RULE = f'nobody ALL=(root) NOPASSWD: {HELPER} ""'


def test_a_card_by_sudo(ordinary: Pyvmm, by_sudo: Callable[[str], tuple[str, ...]]) -> None:
    run = ordinary(*ordinary.guest(say("hello\n"), POWER_OFF), "--net", "bridge=br0", before=by_sudo(RULE))
    assert (run.code, run.output, run.messages) == (0, "hello\n", "")


def test_a_killed_run_by_sudo_leaves_nothing(ordinary: Pyvmm, by_sudo: Callable[[str], tuple[str, ...]]) -> None:
    with ordinary.start(*ordinary.guest(say("up\n"), HANG), "--net", "bridge=br0", before=by_sudo(RULE)) as process:
        assert process.stdout
        process.stdout.readline()
        assert "pyvmm0" in links()
        process.kill()


def test_a_user_whom_sudo_does_not_let(ordinary: Pyvmm, by_sudo: Callable[[str], tuple[str, ...]]) -> None:
    run = ordinary(*ordinary.guest(HANG), "--net", "bridge=br0", before=by_sudo(RULE.replace("nobody", "daemon")))
    assert run.code == 125
    assert run.messages == (
        "pyvmm: sudo --non-interactive pyvmm-net-helper: the helper does not answer: sudo: a password is required\n"
        "  run: pyvmm-net-helper --print-units, which ends with the line that sudo needs\n"
    )
