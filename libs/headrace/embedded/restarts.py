"""How long to wait before a part is started again."""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Doubles the pause after each failure in a row; a part that has held for a while starts over."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        first: float = 0.5,
        longest: float = 30.0,
        holds_after: float = 60.0,
    ) -> None:
        self._now = now
        self._first = first
        self._longest = longest
        self._holds_after = holds_after
        self._next = first
        self._started = now()

    def started(self) -> None:
        """The part is being started."""
        self._started = self._now()

    def pause(self) -> float:
        """The part has ended: how many seconds to wait."""
        if self._now() - self._started >= self._holds_after:
            self._next = self._first
        pause = self._next
        self._next = min(2 * pause, self._longest)
        return pause
