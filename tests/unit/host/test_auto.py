"""`--net auto`: the best that may be had, and which it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from vmm.errors import BackendError
from vmm.host import auto


class Fake:
    """In the place of a tap or an uplink."""


def choices(monkeypatch: pytest.MonkeyPatch, *refused: str) -> dict[str, Fake]:
    """Three networks of which some are refused."""
    made = {name: Fake() for name in ("lab", "user", "lan=auto")}

    def opener(name: str) -> Callable[[], Any]:
        def open_it() -> Fake:
            if name in refused:
                raise BackendError(f"no {name}", where="host", fix="nothing")
            return made[name]

        return open_it

    monkeypatch.setattr(auto, "_choices", lambda _: [(name, opener(name)) for name in made])
    return made


@pytest.mark.parametrize(
    ("refused", "chosen", "said"),
    [
        ([], "lab", "--net auto is --net lab"),
        (["lab"], "user", "--net auto is --net user; not lab: host: no lab"),
        (["lab", "user"], "lan=auto", "--net auto is --net lan=auto; not lab: host: no lab; not user: host: no user"),
    ],
)
def test_the_first_that_may_be_had(monkeypatch: pytest.MonkeyPatch, refused: list[str], chosen: str, said: str) -> None:
    told: list[str] = []
    made = choices(monkeypatch, *refused)
    opened: object = auto.open_auto(None, told.append)
    assert opened is made[chosen]
    assert told == [said]


def test_none_may_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    choices(monkeypatch, "lab", "user", "lan=auto")
    with pytest.raises(BackendError, match="there is none to be had") as caught:
        auto.open_auto(None, lambda _: None)
    assert caught.value.fix.splitlines() == ["lab: host: no lab", "user: host: no user", "lan=auto: host: no lan=auto"]


def test_without_networks_and_passt_it_is_a_lan(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vmm.native._engine", reason="the native engine is not built: pip install -e .")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("PYVMM_STATE", str(tmp_path))
    told: list[str] = []
    with contextlib.closing(auto.open_auto(9000, told.append)) as uplink:
        assert (uplink.name, uplink.mtu) == ("lan auto port 0", 9000)
    assert told == ["--net auto is --net lan=auto; not user: --net user: passt is not installed"]
