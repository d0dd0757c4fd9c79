"""The life of a service: what was opened last is closed first, within a deadline."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from headrace.runtime.health import Health

logger = logging.getLogger(__name__)

T = TypeVar("T")
Work = Coroutine[Any, Any, object] | Callable[[], Coroutine[Any, Any, object]]

# Even after the deadline each part gets this long: closing a socket is quick, and skipping it is worse.
GRACE_SECONDS = 0.5
CANCEL_AGAIN_SECONDS = 1.0


class Runner:
    """Owns a service's resources and background tasks.

    `enter` opens a resource, `spawn` starts a supervised task; both are closed in reverse order by
    `close`. A task that raises makes the service stop and fail; a task that returns has simply finished.
    """

    def __init__(self) -> None:
        self.health = Health()
        self.stopping = asyncio.Event()
        self._closers: list[tuple[str, Callable[[], Awaitable[object]]]] = []
        self._failure: BaseException | None = None

    @property
    def failure(self) -> BaseException | None:
        """What made the service fail, if anything did."""
        return self._failure

    async def enter(self, context: AbstractAsyncContextManager[T]) -> T:
        """Open a resource that lives until the service stops; return what it yields."""
        value = await context.__aenter__()
        self._closers.append((_name_of(context), lambda: context.__aexit__(None, None, None)))
        return value

    async def enter_at_once(self, contexts: Iterable[AbstractAsyncContextManager[T]]) -> list[T]:
        """Open resources that keep each other waiting for no reason, in tasks of their own.

        Raises the first error, when none of them is being opened any more.
        """
        opening = [asyncio.ensure_future(self.enter(context)) for context in contexts]
        try:
            return await asyncio.gather(*opening)
        except BaseException:
            for task in opening:
                task.cancel()
            await asyncio.gather(*opening, return_exceptions=True)
            raise

    def on_stop(self, close: Callable[[], Awaitable[object]], name: str) -> None:
        """Await `close()` in its place when the service stops."""
        self._closers.append((name, close))

    def spawn(self, work: Work, name: str) -> asyncio.Task[object]:
        """Run `work` in the background, supervised, until it ends or the service stops."""
        coroutine = work if inspect.iscoroutine(work) else work()  # type: ignore[operator]
        task: asyncio.Task[object] = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(self._task_done)
        self._closers.append((name, lambda: _cancel(task)))
        return task

    def stop(self) -> None:
        """Ask the service to stop."""
        self.health.drain()
        self.stopping.set()

    async def close(self, drain_seconds: float) -> None:
        """Close everything, newest first, all of it within `drain_seconds`.

        A part that does not close in time is cancelled and left; one that raises is logged. Either makes
        the service fail, and neither keeps the others from being closed.
        """
        self.stop()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + drain_seconds
        while self._closers:
            name, close = self._closers.pop()
            try:
                async with asyncio.timeout_at(max(deadline, loop.time() + GRACE_SECONDS)):
                    await close()
            except TimeoutError as error:
                logger.error("did not close within %.1f s: %s", drain_seconds, name)  # noqa: TRY400
                self._fail(error)
            except Exception as error:
                logger.exception("closing failed: %s", name)
                self._fail(error)

    def _task_done(self, task: asyncio.Task[object]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        logger.error("task failed, stopping: %s", task.get_name(), exc_info=error)
        self._fail(error)
        self.health.set_ready(task.get_name(), ready=False, message=f"{type(error).__name__}: {error}")
        self.stop()

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error


async def _cancel(task: asyncio.Task[object]) -> None:
    # Again and again: what is raised while a task is being cancelled can take the cancellation's place.
    while not task.done():
        task.cancel()
        # wait() and not await: the outcome is _task_done's to judge, and a cancellation here is our own.
        await asyncio.wait([task], timeout=CANCEL_AGAIN_SECONDS)


def _name_of(context: object) -> str:
    # A generator-based context manager is known by its function's name.
    function = getattr(context, "func", None)
    return getattr(function, "__qualname__", None) or type(context).__qualname__
