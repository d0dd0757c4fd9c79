"""Which offsets of a partition are done, and how far that allows to commit."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class PartitionTracker:
    """Offsets in work of one partition.

    Records finish in any order; what may be committed is the offset before the oldest unfinished one,
    so that a crash never skips a record.
    """

    _started: dict[int, None] = field(default_factory=dict)
    _next: int | None = None

    def start(self, offset: int) -> None:
        """Begin a record; offsets rise."""
        assert self.follows(offset), "offsets of a partition rise"
        self._started[offset] = None
        self._next = offset + 1

    def finish(self, offset: int) -> None:
        """A record has had its effect, or lies among the dead letters."""
        del self._started[offset]

    def follows(self, offset: int) -> bool:
        """Whether a record of that offset may begin here, and not only in a log that began anew."""
        return self._next is None or offset >= self._next

    @property
    def committable(self) -> int | None:
        """The offset to commit (that of the next record to read), None before the first record."""
        if self._next is None:
            return None
        # Insertion order is offset order, so the first key is the oldest unfinished record.
        return next(iter(self._started), self._next)
