"""An iterator's items made ahead in a thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Prefetching(Generic[T]):
    """Makes up to `ahead` items that nobody has taken yet, and one more that waits for its place.

    What the source raises is raised here, after the items before it. Leaving the context ends the thread; it
    waits for the item that is being made. For one consumer.
    """

    def __init__(self, source: Generator[T, None, None], ahead: int) -> None:
        self._source = source
        self._ahead = ahead
        self._made: deque[T] = deque()
        self._error: BaseException | None = None
        self._over = self._closed = False
        self._changed = threading.Condition()
        # A daemon: a process that ends does not wait for what it has not asked for.
        self._thread = threading.Thread(target=self._make, name="prefetching", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._made or self._over)
                if not self._made:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._made.popleft()
                self._changed.notify_all()
            yield item

    def _make(self) -> None:
        try:
            # Closed in its own thread: what it holds open ends with it.
            with closing(self._source):
                for item in self._source:
                    if not self._put(item):
                        return
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _put(self, item: T) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._made) < self._ahead)
            if not self._closed:
                self._made.append(item)
                self._changed.notify_all()
            return not self._closed
