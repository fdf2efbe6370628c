"""Changes of the host that are made wholly or not at all.

A transaction is a list of steps. Each says whether it is done, does itself, and undoes itself; doing it twice is doing
it once, and undoing what was never done changes nothing, nor does it touch what is not pyvmm's. So what is to be
recorded is the list alone, before its first step: whoever finds the record, after a crash in whichever step, can go on
to the end (`mend`) or back to the start (`revert`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from vmm.errors import BackendError, HostError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Step(Protocol):
    """One change. The host's refusals are raised as `OSError` or `BackendError`."""

    @property
    def what(self) -> str:
        """The thing that is made, such as ``bridge lab``."""

    def describe(self) -> str:
        """What `do` does, as the commands a person would type."""

    def is_done(self) -> bool:
        """Whether all is as `do` leaves it."""

    def do(self) -> None:
        """Make it, or what of it is missing."""

    def undo(self) -> None:
        """Take it away, or what of it is there."""


def apply(steps: Sequence[Step], goal: str) -> None:
    """Do all *steps*, or none: after a failure those that were done are undone. *goal* is for the message.

    Raises:
        BackendError: a step failed; what, why, and what became of the others.
    """
    for number, step in enumerate(steps):
        try:
            step.do()
        except (HostError, OSError) as error:
            raise _failure(goal, step, error, _undo(steps[: number + 1])) from error
        except BaseException:
            _undo(steps[: number + 1])
            raise


def revert(steps: Sequence[Step], goal: str) -> None:
    """Undo all *steps*, the last first; one that fails does not keep the others from it.

    Raises:
        BackendError: some could not be undone, and which.
    """
    left = _undo(steps)
    if left:
        raise BackendError("\n  ".join(f"cannot remove {what}" for what in left), where=goal)


def mend(steps: Sequence[Step], goal: str) -> list[str]:
    """Do those *steps* that are not done; what was made.

    Raises:
        BackendError: one of them failed. The others stay done.
    """
    made = []
    for step in steps:
        try:
            if not step.is_done():
                step.do()
                made.append(step.what)
        except (HostError, OSError) as error:
            raise _failure(goal, step, error, None) from error
    return made


def _undo(steps: Sequence[Step]) -> list[str]:
    """Undo *steps*, the last first; what is left, and why."""
    left = []
    for step in reversed(steps):
        try:
            step.undo()
        except (HostError, OSError) as error:
            left.append(f"{step.what}: {_reason(error)}")
    return left


def _failure(goal: str, step: Step, error: HostError | OSError, left: list[str] | None) -> BackendError:
    if left is None:
        restored = "what was there before still is"
    elif left:
        restored = "\n".join(["undone but for", *left])
    else:
        restored = "the host is as it was before"
    fix = [restored]
    if isinstance(error, PermissionError):
        fix.append("this needs CAP_NET_ADMIN: run it with sudo")
    elif isinstance(error, HostError) and error.fix:
        fix.append(error.fix)
    return BackendError(f"cannot make {step.what}: {_reason(error)}", where=goal, fix="\n".join(fix))


def _reason(error: HostError | OSError) -> str:
    return error.what if isinstance(error, HostError) else error.strerror or str(error)
