"""How a machine's run ended: a closed set."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final


POWERED_OFF: Final = "powered off"
RESET: Final = "reset"
PANIC: Final = "panic"
CRASH: Final = "crash"
HALTED: Final = "halted"
STOPPED: Final = "stopped"
TIMEOUT: Final = "timeout"
DEBUG_EXIT: Final = "debug exit"


class Outcome:
    """*kind* is one of the constants above; *message* says it in a sentence, *report* at length (may be empty).

    *status* is what the guest wrote to the debug-exit port, for `DEBUG_EXIT`.
    """

    __slots__ = ("kind", "message", "report", "status")

    def __init__(self, kind: str, message: str = "", *, report: str = "", status: int = 0) -> None:
        self.kind, self.message, self.report, self.status = kind, message, report, status

    def __repr__(self) -> str:
        return f"Outcome({self.kind!r}, {self.message!r})"
