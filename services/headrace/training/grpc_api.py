"""RPC messages to stored runs and logs, and back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.api.training.v1 import training_pb2 as api
from headrace.api.training.v1 import training_pb2_grpc
from headrace.recipes.catalogue import RECIPES
from headrace.rpc import paging
from headrace.training.messages import run_message
from headrace.training.storage.repository import RunRepository

WATCH_SECONDS = 0.2
FAR_FUTURE = datetime(9999, 1, 1, tzinfo=UTC)
LAST_ID = "~"
LINES_AT_ONCE = 500


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """The training service's API; the proto says what each method does."""

    def __init__(self, runs: RunRepository, log: Callable[[str], Path]) -> None:
        self._runs = runs
        self._log = log

    async def GetRun(self, request: api.GetRunRequest, context: Any) -> api.Run:
        """One run."""
        return run_message(await self._runs.get(request.id))

    async def ListRuns(self, request: api.ListRunsRequest, context: Any) -> api.ListRunsResponse:
        """Runs, newest first."""
        size = paging.page_size(request.page_size)
        position = paging.decode_token(request.page_token, str, str)
        before = datetime.fromisoformat(str(position[0])) if position else FAR_FUTURE
        before_id = str(position[1]) if position else LAST_ID
        rows = await self._runs.list_runs(request.job, before, before_id, size + 1)
        page, token = paging.cut(rows, size, lambda run: (run.start_time.isoformat(), run.id))
        return api.ListRunsResponse(runs=map(run_message, page), next_page_token=token)

    async def WatchRun(self, request: api.WatchRunRequest, context: Any) -> AsyncIterator[api.Run]:
        """A run as it is, then after every change, until it has ended."""
        last = None
        while True:
            run = await self._runs.get(request.id)
            message = run_message(run)
            if message != last:
                last = message
                yield message
            if run.state.ended:
                return
            await asyncio.sleep(WATCH_SECONDS)

    async def StreamLogs(
        self, request: api.StreamLogsRequest, context: Any
    ) -> AsyncIterator[api.StreamLogsResponse]:
        """A run's lines from the first, then as they come, until it has ended."""
        position = 0
        while True:
            ended = (await self._runs.get(request.id)).state.ended
            lines, position = await asyncio.to_thread(_read, self._log(request.id), position, whole=ended)
            for start in range(0, len(lines), LINES_AT_ONCE):
                yield api.StreamLogsResponse(lines=lines[start : start + LINES_AT_ONCE])
            if ended:
                return
            await asyncio.sleep(WATCH_SECONDS)

    async def ListRecipes(self, request: api.ListRecipesRequest, context: Any) -> api.ListRecipesResponse:
        """Built-in recipes with their parameters."""
        return api.ListRecipesResponse(
            recipes=[
                api.Recipe(
                    name=recipe.name,
                    description=recipe.description,
                    parameters=[
                        api.Parameter(
                            name=name,
                            description=str(schema.get("description", "")),
                            json_schema=json.dumps(schema),
                        )
                        for name, schema in recipe.parameters.model_json_schema()["properties"].items()
                    ],
                )
                for recipe in RECIPES.values()
            ]
        )


def _read(log: Path, position: int, *, whole: bool) -> tuple[list[str], int]:
    """Lines that are complete, or all there is, after a position; and the position after them."""
    if not log.exists():
        return [], position
    with log.open("rb") as file:
        file.seek(position)
        data = file.read()
    if not whole:
        data = data[: data.rfind(b"\n") + 1]
    return data.decode(errors="replace").splitlines(), position + len(data)
