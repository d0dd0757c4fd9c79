"""The deadline of the work in progress: it bounds every call that the work makes.

A server sets it from the caller's deadline; a channel reads it. Tasks that are started within it inherit
it, as they do every context variable: work that is to outlive the call starts in `unbounded()`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("headrace.rpc.deadline", default=None)


def remaining() -> float | None:
    """Return the seconds left, possibly negative; None where there is no deadline."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


@contextmanager
def bounded(seconds: float | None) -> Iterator[None]:
    """Give the block at most `seconds`, and never more than it has already. None bounds nothing."""
    if seconds is None:
        yield
        return
    current = _deadline.get()
    deadline = time.monotonic() + seconds
    token = _deadline.set(deadline if current is None else min(current, deadline))
    try:
        yield
    finally:
        _deadline.reset(token)


@contextmanager
def unbounded() -> Iterator[None]:
    """Take the deadline away from the block, for work that outlives the call that started it."""
    token = _deadline.set(None)
    try:
        yield
    finally:
        _deadline.reset(token)
