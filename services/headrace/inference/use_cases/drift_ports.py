"""What watching for drift needs from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.drift import Reference
from headrace.inference.domain.drift_watch import Episode, Watch, WindowResult

Tensors = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A request and its answer, as `ports.LoggedPrediction` has them."""

    time: datetime
    inputs: Tensors
    outputs: Tensors

    @property
    def rows(self) -> int:
        """How many rows it was for: the first size of every tensor; at least 1."""
        for tensor in (*self.inputs.values(), *self.outputs.values()):
            shape = tensor.get("shape")
            if isinstance(shape, list) and shape and isinstance(shape[0], int):
                return max(1, shape[0])
        return 1


class Profiles(Protocol):
    """What versions were trained on."""

    async def reference(self, version: ServedVersion) -> Reference:
        """The profile of the version's dataset version. Raises HeadraceError."""


class DriftStore(Protocol):
    """Where windows and episodes are kept; each method is a transaction."""

    async def watches(self) -> dict[str, Watch]:
        """How far every deployment is watched, by name."""

    async def watch(self, deployment: str) -> Watch | None:
        """How far one is."""

    async def request_count(self, deployment: str, version: int, since: datetime, at_most: int) -> int:
        """Requests that the version answered after that moment, counted no further than `at_most`."""

    async def newest_requests(
        self, deployment: str, version: int, since: datetime, rows: int
    ) -> Sequence[LoggedRequest]:
        """The newest of them, as many as make so many rows, newest first."""

    async def episode(self, episode: str) -> Episode:
        """An episode that there is."""

    async def episodes(self, deployment: str, limit: int) -> Sequence[Episode]:
        """A deployment's episodes, newest first."""

    async def last_window(self, deployment: str, version: int) -> WindowResult | None:
        """The version's last window."""

    async def save(self, watch: Watch, result: WindowResult | None, episode: Episode | None) -> bool:
        """Store a watch, the window that it came from, and the episode that began or ended by it.

        The episode is told of in an event. False, and nothing is stored, where somebody else has changed the
        watch meanwhile.
        """

    async def forget(self, watch: Watch, ended: Episode | None) -> None:
        """Remove the watch of a deployment that is gone, and tell that its episode has ended."""
