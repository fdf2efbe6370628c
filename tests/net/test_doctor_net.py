"""The doctor's network checks: what they try is real, and is not done to the user's own network."""

from __future__ import annotations

import os

import pytest

from vmm.host import doctor
from vmm.host.net import bridge as bridge_module
from vmm.host.tap import Tap

from .namespace import links, without_net_admin

pytestmark = pytest.mark.net


def test_a_tap_is_made_and_removed(nothing_left: None) -> None:
    row = doctor.check_tap()
    assert (row.status, row.seen) == ("ok", "made pyvmm0 and removed it")


def test_the_bridge_is_made_elsewhere(nothing_left: None, monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.readlink("/proc/thread-self/ns/net")
    create = bridge_module.create_bridge_tap
    seen = []

    def create_and_look(name: str) -> Tap:
        tap = create(name)
        seen.append((os.readlink("/proc/thread-self/ns/net") != here, links()))
        return tap

    monkeypatch.setattr(bridge_module, "create_bridge_tap", create_and_look)
    assert doctor.check_bridge().status == "ok"
    assert seen == [(True, {"lo", "pyvmm-doctor", "pyvmm0"})]


def test_without_privilege(nothing_left: None) -> None:
    with without_net_admin():
        tap, bridge = doctor.check_tap(), doctor.check_bridge()
    for row in (tap, bridge):
        assert (row.status, row.seen) == ("failed", "needs CAP_NET_ADMIN")
        assert row.fix.startswith("run pyvmm with sudo")
