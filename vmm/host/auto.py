"""`--net auto`: the best network that the caller may have."""

from __future__ import annotations

from vmm.config import NetConfig
from vmm.errors import BackendError, VmmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.host.tap import Tap
    from vmm.host.uplink import Uplink

#: The lan of guests that have nothing better.
LAN = "auto"


def open_auto(mtu: int | None, say: Callable[[str], None]) -> Tap | Uplink:
    """A managed network that may be joined, or else the world through passt, or else the lan `auto`; *say* which.

    Raises:
        BackendError: none of them.
    """
    refusals = []
    for what, open_one in _choices(mtu):
        try:
            opened = open_one()
        except VmmError as error:
            refusals.append(f"{what}: {str(error).splitlines()[0]}")
            continue
        say("; ".join([f"--net auto is --net {what}", *(f"not {refusal}" for refusal in refusals)]))
        return opened
    raise BackendError("there is none to be had", where="--net auto", fix="\n".join(refusals))


def _choices(mtu: int | None) -> list[tuple[str, Callable[[], Tap | Uplink]]]:
    from vmm.host.lan.port import open_lan
    from vmm.host.passt import open_passt

    return [*_managed(mtu), ("user", lambda: open_passt(mtu)), (f"lan={LAN}", lambda: open_lan(LAN, mtu))]


def _managed(mtu: int | None) -> list[tuple[str, Callable[[], Tap | Uplink]]]:
    from vmm.host.net.store import Store

    def joined(name: str) -> Callable[[], Tap]:
        def join() -> Tap:
            from vmm.host.net.join import join

            return join(NetConfig(network=name, mtu=mtu))[0]

        return join

    return [(name, joined(name)) for name in Store().networks()]
