"""Starts a stack's parts in order, keeps them running, and stops them in reverse."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from headrace.embedded.logs import keep_small
from headrace.embedded.parts.process import PartFailed
from headrace.embedded.restarts import Backoff
from headrace.embedded.stack_file import PartState, PartStatus

logger = logging.getLogger(__name__)


class Supervised(Protocol):
    """What is supervised: a program, or something outside that is only waited for."""

    @property
    def name(self) -> str:
        """Its name, one of a kind in the stack."""

    @property
    def pid(self) -> int | None:
        """Its process; None where it has none."""

    @property
    def log(self) -> Path | None:
        """Its log file; None where it has none."""

    @property
    def notice(self) -> str:
        """What takes long before it starts this time; empty where nothing does."""

    async def start(self) -> None:
        """Start it and wait until it works. Raises PartFailed."""

    async def wait(self) -> int:
        """Wait until it ends; returns its exit code."""

    async def stop(self) -> None:
        """Stop it, whatever it takes."""

    async def problem(self) -> str:
        """What keeps it from working now; empty where nothing does."""

    def kill(self) -> None:
        """End it at once."""


@dataclass(frozen=True)
class Node:
    """A part and its place in the stack."""

    part: Supervised
    # Parts that must work before it starts, and that stop after it.
    after: tuple[str, ...] = ()
    address: str = ""
    # What clients find in the stack's file once it works.
    targets: Mapping[str, str] = field(default_factory=dict)
    # It loses what it knows when it ends: what stands on it is started anew with it.
    forgets: bool = False

    @property
    def name(self) -> str:
        """The part's name."""
        return self.part.name


def levels(nodes: Sequence[Node]) -> list[list[Node]]:
    """The nodes in starting order: each level needs only those before it."""
    remaining = {node.name: node for node in nodes}
    placed: set[str] = set()
    result: list[list[Node]] = []
    while remaining:
        level = [node for node in remaining.values() if placed.issuperset(node.after)]
        assert level, f"parts wait for each other or for nothing there is: {sorted(remaining)}"
        result.append(level)
        for node in level:
            placed.add(node.name)
            del remaining[node.name]
    return result


class _Life:
    """One run of a part, from its coming up to its end."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.over = asyncio.Event()


class Supervisor:
    """Runs a stack. `changed` is called with a part's status at each change of it."""

    def __init__(self, nodes: Sequence[Node], changed: Callable[[PartStatus], None]) -> None:
        self._levels = levels(nodes)
        self._nodes = {node.name: node for node in nodes}
        self._changed = changed
        self._lives = {node.name: _Life() for node in nodes}
        self._restarts = dict.fromkeys(self._nodes, 0)
        self._tasks: list[asyncio.Task[None]] = []
        self._trimming: list[asyncio.Task[None]] = []
        self._began = 0.0

    async def start(self) -> None:
        """Start every part, and return when all of them work. Raises PartFailed for the first that does not.

        Afterwards a part that ends is started again. Call `stop` in any case.
        """
        self._began = asyncio.get_running_loop().time()
        for node in self._nodes.values():
            self._tell(node, PartState.WAITING)
        self._tasks = [
            asyncio.create_task(self._tend(node), name=f"tend {node.name}") for node in self._nodes.values()
        ]
        logs = [node.part.log for node in self._nodes.values() if node.part.log is not None]
        self._trimming = [asyncio.create_task(keep_small(logs), name="keep logs small")]
        all_ready = asyncio.create_task(self._until_all_are_ready())
        try:
            # The others end only by failing.
            await asyncio.wait([all_ready, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
        finally:
            await _cancelled([all_ready])

    async def stop(self) -> None:
        """Stop every part, those first that need others."""
        await _cancelled(self._tasks)
        for level in reversed(self._levels):
            await asyncio.gather(*map(self._stop, level))
        await _cancelled(self._trimming)

    def kill(self) -> None:
        """End every part at once."""
        for node in self._nodes.values():
            node.part.kill()

    async def _stop(self, node: Node) -> None:
        self._tell(node, PartState.STOPPING)
        await node.part.stop()
        self._tell(node, PartState.STOPPED)

    async def _until_all_are_ready(self) -> None:
        for node in self._nodes.values():
            await self._lives[node.name].ready.wait()

    async def _tend(self, node: Node) -> None:
        """Start a part when it can, and again whenever it has ended."""
        backoff = Backoff(asyncio.get_running_loop().time)
        came_up = False
        last_restart = ""
        while True:
            for name in node.after:
                await self._lives[name].ready.wait()
            foundations = {name: self._lives[name].over for name in node.after if self._nodes[name].forgets}
            self._tell(node, PartState.STARTING, node.part.notice)
            backoff.started()
            try:
                await node.part.start()
            except PartFailed as failure:
                if not came_up:
                    raise
                what = failure.what
            else:
                came_up = True
                self._lives[node.name].ready.set()
                self._tell(node, PartState.READY, last_restart)
                what = await self._end(node, foundations)
                self._lives[node.name].over.set()
                self._lives[node.name] = _Life()
            self._restarts[node.name] += 1
            last_restart = f"last restart: {what}"
            pause = backoff.pause()
            logger.warning("%s %s; starting it again in %.1f s", node.name, what, pause)
            self._tell(node, PartState.RESTARTING, what)
            await asyncio.sleep(pause)

    async def _end(self, node: Node, foundations: Mapping[str, asyncio.Event]) -> str:
        """Wait until a part has ended, or must because it stood on what is lost; say why."""
        ended = asyncio.create_task(node.part.wait())
        lost = [asyncio.create_task(over.wait()) for over in foundations.values()]
        try:
            await asyncio.wait([ended, *lost], return_when=asyncio.FIRST_COMPLETED)
            gone = [name for name, over in foundations.items() if over.is_set()]
            if not gone:
                return f"ended with exit code {ended.result()}"
            # At once: what it would still do concerns what is lost.
            node.part.kill()
            await node.part.stop()
            return f"was stopped, because {gone[0]} ended and forgot everything"
        finally:
            await _cancelled([ended, *lost])

    def _tell(self, node: Node, state: PartState, message: str = "") -> None:
        self._changed(
            PartStatus(
                name=node.name,
                state=state,
                pid=node.part.pid,
                address=node.address,
                log=node.part.log,
                message=message,
                restarts=self._restarts[node.name],
                seconds=round(asyncio.get_running_loop().time() - self._began, 3),
            )
        )


async def _cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
