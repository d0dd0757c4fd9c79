"""Windows and episodes of drift as rows, and the events that tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import asyncpg
import orjson
from pydantic import TypeAdapter

from headrace.inference.domain.drift import Finding
from headrace.inference.domain.drift_watch import EndReason, Episode, Watch, WindowResult
from headrace.inference.drift_messages import drift_detected, drift_ended
from headrace.inference.use_cases.drift_ports import LoggedRequest
from headrace.messaging.events import protobuf_event
from headrace.messaging.topics import INFERENCE_ALERTS
from headrace.postgres import Connection, Pool, transaction
from headrace.postgres.outbox import enqueue
from headrace.postgres.queries import load_queries
from headrace.runtime.faults import fault_point

QUERIES: Final = load_queries("headrace.inference.storage", "drift_queries.sql")

DRIFT_DETECTED: Final = "headrace.inference.drift-detected.v1"
DRIFT_ENDED: Final = "headrace.inference.drift-ended.v1"
# Of each deployment.
WINDOWS_KEPT: Final = 100

_FINDINGS: Final = TypeAdapter(tuple[Finding, ...])


class PostgresDrift:
    """The tables of drift, each method a transaction of its own (`use_cases.drift_ports.DriftStore`)."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def watches(self) -> dict[str, Watch]:
        """How far every deployment is watched, by name."""
        rows = await self._pool.fetch(QUERIES["all_drift_watches"])
        return {row["deployment"]: _watch(row) for row in rows}

    async def watch(self, deployment: str) -> Watch | None:
        """How far one is."""
        row = await self._pool.fetchrow(QUERIES["drift_watch"], deployment)
        return _watch(row) if row else None

    async def request_count(self, deployment: str, version: int, since: datetime, at_most: int) -> int:
        """Requests that the version answered after that moment, counted no further than `at_most`."""
        count: int = await self._pool.fetchval(QUERIES["count_requests"], deployment, version, since, at_most)
        return count

    async def newest_requests(
        self, deployment: str, version: int, since: datetime, rows: int
    ) -> Sequence[LoggedRequest]:
        """The newest of them, as many as make so many rows, newest first."""
        found: list[LoggedRequest] = []
        left = rows
        # One by one: of large requests there need not be many.
        async with transaction(self._pool) as connection:
            async for row in connection.cursor(QUERIES["newest_requests"], deployment, version, since):
                request = LoggedRequest(
                    row["time"], orjson.loads(row["inputs"]), orjson.loads(row["outputs"])
                )
                found.append(request)
                left -= request.rows
                if left <= 0:
                    break
        return found

    async def episode(self, episode: str) -> Episode:
        """An episode that there is."""
        row = await self._pool.fetchrow(QUERIES["drift_episode"], episode)
        assert row is not None
        return _episode(row)

    async def episodes(self, deployment: str, limit: int) -> Sequence[Episode]:
        """A deployment's episodes, newest first."""
        return [
            _episode(row) for row in await self._pool.fetch(QUERIES["list_drift_episodes"], deployment, limit)
        ]

    async def last_window(self, deployment: str, version: int) -> WindowResult | None:
        """The version's last window."""
        row = await self._pool.fetchrow(QUERIES["last_drift_window"], deployment, version)
        return _window(row) if row else None

    async def save(self, watch: Watch, result: WindowResult | None, episode: Episode | None) -> bool:
        """Store a watch with the window that it came from, and the episode that began or ended by it.

        False, and nothing is stored, where somebody else has changed the watch meanwhile.
        """
        values = (
            watch.deployment,
            watch.version,
            watch.since,
            watch.drifting,
            watch.calm,
            watch.episode or None,
            watch.message,
        )
        async with transaction(self._pool) as connection:
            # The watch's row is locked from here on, which orders its deployment's alerts.
            if watch.revision:
                stored = await connection.fetchval(QUERIES["update_drift_watch"], *values, watch.revision)
            else:
                stored = await connection.fetchval(QUERIES["insert_drift_watch"], *values)
            if not stored:
                return False
            if result is not None:
                await connection.execute(
                    QUERIES["insert_drift_window"],
                    watch.deployment,
                    result.end,
                    result.version,
                    result.begin,
                    result.requests,
                    result.rows,
                    _FINDINGS.dump_python(result.findings, mode="json"),
                )
                await connection.execute(QUERIES["forget_drift_windows"], watch.deployment, WINDOWS_KEPT)
            if episode is not None:
                await _tell(connection, episode, result)
        fault_point("inference.after-drift-commit")
        return True

    async def forget(self, watch: Watch, ended: Episode | None) -> None:
        """Remove the watch of a deployment that is gone, and tell that its episode has ended."""
        async with transaction(self._pool) as connection:
            gone = await connection.fetchval(QUERIES["delete_drift_watch"], watch.deployment, watch.revision)
            if gone and ended is not None:
                await _tell(connection, ended, None)


async def _tell(connection: Connection, episode: Episode, window: WindowResult | None) -> None:
    """Store an episode that began or ended, and queue the event that says so."""
    await connection.execute(
        QUERIES["put_drift_episode"],
        episode.id,
        episode.deployment,
        episode.model,
        episode.version,
        episode.dataset,
        episode.dataset_version,
        list(episode.columns),
        episode.begin_time,
        episode.end_time,
        episode.end_reason,
    )
    if episode.end_time is None:
        assert window is not None
        begun = drift_detected(episode, window)
        event = protobuf_event(
            begun,
            type=DRIFT_DETECTED,
            source="headrace/inference",
            subject=episode.deployment,
            id=episode.id,
            time=episode.begin_time,
        )
    else:
        event = protobuf_event(
            drift_ended(episode),
            type=DRIFT_ENDED,
            source="headrace/inference",
            subject=episode.deployment,
            id=f"{episode.id}-ended",
            time=episode.end_time,
        )
    await enqueue(connection, INFERENCE_ALERTS, episode.model, event)


def _watch(row: asyncpg.Record) -> Watch:
    return Watch(
        deployment=row["deployment"],
        version=row["version"],
        since=row["since"],
        drifting=row["drifting"],
        calm=row["calm"],
        episode=str(row["episode"]) if row["episode"] else "",
        message=row["message"],
        revision=row["revision"],
    )


def _window(row: asyncpg.Record) -> WindowResult:
    return WindowResult(
        version=row["version"],
        begin=row["begin_time"],
        end=row["end_time"],
        requests=row["requests"],
        rows=row["row_count"],
        findings=_FINDINGS.validate_python(row["findings"]),
    )


def _episode(row: asyncpg.Record) -> Episode:
    return Episode(
        id=str(row["id"]),
        deployment=row["deployment"],
        model=row["model"],
        version=row["version"],
        dataset=row["dataset"],
        dataset_version=row["dataset_version"],
        columns=tuple(row["columns"]),
        begin_time=row["begin_time"],
        end_time=row["end_time"],
        end_reason=EndReason(row["end_reason"]) if row["end_reason"] else None,
    )
