"""What the agent needs from outside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.training.domain.runs import Run
from headrace.training.run.messages import Message


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run's process ended. `reason` and `message` say why where it did not end well."""

    code: int
    reason: str = ""
    message: str = ""


Listener = Callable[[Message], Awaitable[None]]


class Executor(Protocol):
    """Runs one attempt as a process of its own."""

    def folder(self, run_id: str) -> Path:
        """Where a run's files lie."""

    async def execute(
        self, task: scheduling_pb2.Task, run: Run, listen: Listener, stop: Awaitable[object]
    ) -> Ending:
        """Run to the end, telling what the run says; `stop` done means end it."""

    async def discard_checkpoints(self, job: str) -> None:
        """Remove what no attempt of the job will resume from."""


class Registrar(Protocol):
    """The registry."""

    async def register(self, task: scheduling_pb2.Task, run: Run, folder: Path) -> tuple[int, str]:
        """Register a finished run's results; the model version and what became of it, for people.

        Waits for a registry that is away. Raises HeadraceError for one that refuses.
        """


class Runs(Protocol):
    """Stored runs; `storage.repository` says what each raises."""

    async def put(self, run: Run) -> None:
        """Store a run as it is, and tell of it."""

    async def recent(self, node: str, limit: int = 200) -> list[Run]:
        """A node's runs, newest first."""
