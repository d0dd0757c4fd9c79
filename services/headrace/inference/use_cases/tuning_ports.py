"""What tuning needs from outside."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.load_windows import Window
from headrace.inference.domain.serving import Serving
from headrace.inference.use_cases.ports import LoggedPrediction


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """A request to measure with. `source`: where it is from, for people; `rows`: of the largest one known."""

    message: bytes
    rows: int
    source: str


class Copies(Protocol):
    """Copies of versions on the server that is measured: no client reaches them, and they log nothing."""

    async def put(self, deployment: str, version: ServedVersion, serving: Serving) -> None:
        """Make the deployment's copy answer, served so. Raises LoadError, Unavailable."""

    async def remove_all(self) -> None:
        """Remove every copy, also of a process that died. Raises Unavailable."""

    async def live_requests(self) -> int:
        """Requests that others than copies have had so far, on the same machine. Raises Unavailable."""

    def sample(
        self, deployment: str, version: ServedVersion, logged: Sequence[LoggedPrediction]
    ) -> SampleRequest:
        """A request for the deployment's copy: the newest logged one that can be made again, else zeros."""


class Load(Protocol):
    """Load on a copy."""

    async def window(self, *, in_flight: int, rate: float, seconds: float) -> Window:
        """Keep it up for so long: at the rate, or where that is 0 with so many requests under way.

        Raises Unavailable.
        """


class LoadGenerator(Protocol):
    """Makes load."""

    def sending(self, message: bytes) -> AbstractAsyncContextManager[Load]:
        """Get ready to send this request again and again."""


class TuningLock(Protocol):
    """Held by who tunes, of all instances of the service; lost with the process that holds it."""

    def take(self) -> AbstractAsyncContextManager[bool]:
        """Hold it within the block; false where another one does."""
