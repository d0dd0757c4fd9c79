"""Work for many at once, done for what is asked for while the last of it goes on."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from headrace.runtime.outage import is_outage

T = TypeVar("T")
R = TypeVar("R")


class Batches(Generic[T, R]):
    """Hands items to `work` together, `most` at once, one batch after the other, in the order they came.

    Nobody waits for a batch to fill. Where a batch fails each of its items is tried by itself, so that one
    that cannot be done does not take its neighbours along; but not where a part is away, which all need.
    """

    def __init__(self, work: Callable[[Sequence[T]], Awaitable[Sequence[R]]], *, most: int) -> None:
        """`work` answers with a result for each item."""
        self._work = work
        self._most = most
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        """The item's result, or what its work raised."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._worker is None:
            # In no trace: the batch belongs to many.
            self._worker = asyncio.create_task(self._run(), context=contextvars.Context())
        return await done

    async def _run(self) -> None:
        try:
            # What is ready at this moment comes along.
            await asyncio.sleep(0)
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                # Who was cancelled waits no more.
                batch = [entry for entry in batch if not entry[1].done()]
                if batch:
                    await self._do(batch)
        finally:
            self._worker = None

    async def _do(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as error:
            if len(batch) > 1 and not is_outage(error):
                for entry in batch:
                    await self._do([entry])
                return
            for _, done in batch:
                if not done.done():
                    done.set_exception(error)
            return
        for (_, done), result in zip(batch, results, strict=True):
            if not done.done():
                done.set_result(result)
