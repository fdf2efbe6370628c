"""Rigs that are taken apart after the test; that fails if a device still holds guest memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fakes.card import Card
from tests.fakes.driver import Rig
from tests.fakes.native import ENGINES
from vmm.virtio.device import VirtioDevice

MakeRig = Callable[..., Rig]
MakeCard = Callable[..., Card]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(device: VirtioDevice, *, tracing: bool = False, kind: str = "mmio") -> Rig:
        rigs.append(Rig(device, tracing=tracing, kind=kind))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


@pytest.fixture
def make_card() -> Iterator[MakeCard]:
    cards: list[Card] = []

    def make(engine: str, **options: Any) -> Card:
        cards.append(Card(engine, **options))
        return cards[-1]

    yield make
    for card in cards:
        card.close()


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Each engine in turn."""
    return str(request.param)


@pytest.fixture
def card(make_card: MakeCard, engine: str) -> Card:
    """A network card of one queue pair, by each engine."""
    return make_card(engine)


@pytest.fixture
def python_card(make_card: MakeCard) -> Card:
    """One of the reference engine, traced."""
    return make_card("python", tracing=True)
