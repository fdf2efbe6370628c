"""Rate limits: token buckets."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmm.config import Rate


class TokenBucket:
    """Tokens that come at a rate and are saved up to its burst; without a rate there is always one.

    Whoever finds a token may take any number: what was too much is a debt, paid before the next one goes. So a frame or
    request larger than the burst passes too, and the rate holds.
    """

    __slots__ = ("_last", "_level", "_rate")

    def __init__(self) -> None:
        self.set_rate(None)

    def set_rate(self, rate: Rate | None) -> None:
        """Go on with another *rate*, and a full bucket."""
        self._rate = rate
        self._level = float(rate.burst) if rate else 0.0
        self._last = time.monotonic()

    def take(self, tokens: int) -> None:
        """Take *tokens*, whether they are there or not."""
        self._level -= tokens

    def delay_s(self) -> float:
        """How long to wait, in seconds, until there is a token; 0 if there is one now."""
        if self._rate is None:
            return 0.0
        now = time.monotonic()
        self._level = min(self._rate.burst, self._level + (now - self._last) * self._rate.per_second)
        self._last = now
        return 0.0 if self._level >= 1 else (1 - self._level) / self._rate.per_second
