"""Asynchronous requests as rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import asyncpg
import orjson

from headrace.errors import FailedPrecondition, NotFound
from headrace.inference.domain.requests import Failure, Priority, RequestKey, RequestState
from headrace.inference.use_cases.request_ports import Asked, Ended, Known, Named, Record, StoredRequest
from headrace.messaging.events import Headers
from headrace.messaging.topics import INFERENCE_REQUESTS
from headrace.postgres import Connection, Pool, transaction
from headrace.postgres.outbox import EventTooLarge, enqueue_records
from headrace.postgres.queries import load_queries

QUERIES: Final = load_queries("headrace.inference.storage", "request_queries.sql")
_FORGOTTEN_AT_ONCE: Final = 10_000


class PostgresRequests:
    """The table of requests, each method a transaction of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def receive(self, asked: Sequence[Asked]) -> Sequence[Known]:
        """Remember those that are new; what is known of each."""
        status = await self._pool.execute(
            QUERIES["receive_requests"],
            [one.key.id for one in asked],
            [one.key.source for one in asked],
            [one.deployment for one in asked],
            [one.terms.priority.value for one in asked],
            [one.terms.deadline for one in asked],
            [one.terms.reply_topic for one in asked],
            [one.partition_key for one in asked],
            [one.event.content_type for one in asked],
            [one.event.traceparent for one in asked],
            [one.event.time for one in asked],
            [one.received for one in asked],
        )
        if status == f"INSERT 0 {len(asked)}":
            return [Known()] * len(asked)
        known = await self._known([one.key for one in asked])
        # Those that are missing were forgotten in this moment.
        return [known.get(one.key, Known()) for one in asked]

    async def end(self, ended: Sequence[Ended]) -> Sequence[Known | None]:
        """Store how runs ended, of requests that have not ended yet; what is known of each one now.

        None: nothing of it is, for its subject was erased since it was sent.
        """
        named = [one.key for one in ended if one.subject]
        if not named:
            kept = await self._kept(ended, await self._store_ends(self._pool, ended))
            return [kept[one.key] for one in ended]
        async with transaction(self._pool) as connection:
            stored = await self._store_ends(connection, ended)
            # Behind the table's lock, which an erasure has: it has found these, or has left its word.
            rows = await connection.fetch(
                QUERIES["erase_late_requests"], [key.id for key in named], [key.source for key in named]
            )
        erased = {RequestKey(row["source"], row["id"]) for row in rows}
        kept = await self._kept([one for one in ended if one.key not in erased], stored)
        return [kept.get(one.key) for one in ended]

    async def stale(self, runs: Mapping[RequestKey, int]) -> Collection[RequestKey]:
        """Of these runs, by how often each was replayed: those that ended, or were replayed since."""
        rows = await self._pool.fetch(
            QUERIES["stale_requests"],
            [key.id for key in runs],
            [key.source for key in runs],
            list(runs.values()),
        )
        return [RequestKey(row["source"], row["id"]) for row in rows]

    async def erased(self, named: Sequence[Named]) -> Sequence[bool]:
        """Whether each subject was erased since its request was sent, from the data of its model."""
        rows = await self._pool.fetch(
            QUERIES["erased_requests"],
            [one.key.id for one in named],
            [one.key.source for one in named],
            [one.subject for one in named],
        )
        erased = {RequestKey(row["source"], row["id"]) for row in rows}
        return [one.key in erased for one in named]

    async def _store_ends(self, connection: Pool | Connection, ended: Sequence[Ended]) -> set[RequestKey]:
        """Those that had not ended before."""
        failures = [one.failure or Failure("", "", "") for one in ended]
        rows = await connection.fetch(
            QUERIES["end_requests"],
            [one.key.id for one in ended],
            [one.key.source for one in ended],
            [one.state.value for one in ended],
            [one.time for one in ended],
            [one.attempts for one in ended],
            [one.version for one in ended],
            [one.subject for one in ended],
            [failure.code for failure in failures],
            [failure.reason for failure in failures],
            [failure.message.replace("\0", "?") for failure in failures],
            [_headers_text(one.response.headers) for one in ended],
            [one.response.value for one in ended],
            [None if one.record is None else _headers_text(one.record.headers) for one in ended],
            [None if one.record is None else one.record.value for one in ended],
            [one.replays for one in ended],
        )
        stored = {RequestKey(row["source"], row["id"]) for row in rows}
        if len(stored) < len(ended):
            await connection.executemany(
                QUERIES["keep_request_record"],
                [
                    (one.key.id, one.key.source, _headers_text(it.headers), it.value, one.subject)
                    for one in ended
                    if (it := one.record) is not None and one.key not in stored
                ],
            )
        return stored

    async def _kept(self, ended: Sequence[Ended], stored: set[RequestKey]) -> dict[RequestKey, Known]:
        """What is known of each one, of which `stored` are as they were given."""
        kept = {one.key: Known(one.replays, ended=one) for one in ended}
        if others := [one.key for one in ended if one.key not in stored]:
            # One that was forgotten in this moment is as it was given.
            kept |= await self._known(others)
        return kept

    async def find(self, request_id: str, source: str) -> StoredRequest:
        """One request. Raises NotFound, FailedPrecondition where several sources have the id."""
        rows = await self._pool.fetch(QUERIES["find_requests"], request_id, source)
        if not rows:
            raise NotFound(
                "REQUEST_NOT_FOUND",
                f"there is no request {request_id!r}: it was not read yet, or is forgotten for its age; "
                "`headrace requests list` shows those that there are",
            )
        if len(rows) > 1:
            sources = " and ".join(repr(row["source"]) for row in rows)
            raise FailedPrecondition(
                "AMBIGUOUS_REQUEST",
                f"several sources sent a request {request_id!r}, such as {sources}: name one",
            )
        return _stored(rows[0])

    async def response(self, key: RequestKey) -> Record | None:
        """The stored response of a request that has ended."""
        known = (await self._known([key])).get(key)
        return known.ended.response if known and known.ended else None

    async def list_requests(
        self, deployment: str, state: RequestState | None, before: datetime | None, before_id: str, limit: int
    ) -> list[StoredRequest]:
        """Requests, newest first."""
        rows = await self._pool.fetch(
            QUERIES["list_requests"], deployment, state.value if state else "", before, before_id, limit
        )
        return [_stored(row) for row in rows]

    async def run_again(self, key: RequestKey, deadline: datetime | None) -> bool:
        """Make one that ended without an answer wait again, and send its event again; False: it did not.

        Raises FailedPrecondition REQUEST_TOO_LARGE.
        """
        async with transaction(self._pool) as connection:
            row = await connection.fetchrow(QUERIES["lock_request"], key.id, key.source)
            if row is None or row["request_headers"] is None:
                return False
            headers = [
                (name, text.encode()) for name, text in row["request_headers"] if name != "ce_deadline"
            ]
            if deadline is not None:
                headers.append(("ce_deadline", deadline.astimezone(UTC).isoformat().encode()))
            await connection.execute(QUERIES["run_request_again"], key.id, key.source, deadline)
            try:
                await enqueue_records(
                    connection, INFERENCE_REQUESTS, [(row["partition_key"].encode(), headers, row["request"])]
                )
            except EventTooLarge as error:
                raise FailedPrecondition(
                    "REQUEST_TOO_LARGE", f"{error}; send the request again, as a claim check"
                ) from error
            return True

    async def forget(self, before: datetime) -> int:
        """Remove what was received before and has ended, in parts; how many."""
        count, part = 0, _FORGOTTEN_AT_ONCE
        while part == _FORGOTTEN_AT_ONCE:
            part = len(await self._pool.fetch(QUERIES["forget_requests"], before, _FORGOTTEN_AT_ONCE))
            count += part
        return count

    async def _known(self, keys: Sequence[RequestKey]) -> dict[RequestKey, Known]:
        rows = await self._pool.fetch(
            QUERIES["known_requests"], [key.id for key in keys], [key.source for key in keys]
        )
        return {
            RequestKey(row["source"], row["id"]): Known(row["replays"], row["deadline"], _ended(row))
            for row in rows
        }


def _headers_text(headers: Headers) -> str:
    return orjson.dumps([(name, raw.decode()) for name, raw in headers]).decode()


def _failure(row: asyncpg.Record) -> Failure | None:
    return Failure(row["code"], row["reason"], row["message"]) if row["code"] else None


def _ended(row: asyncpg.Record) -> Ended | None:
    state = RequestState(row["state"])
    if not state.ended:
        return None
    headers = [(name, text.encode()) for name, text in row["response_headers"]]
    return Ended(
        key=RequestKey(row["source"], row["id"]),
        state=state,
        time=row["end_time"],
        attempts=row["attempts"],
        response=Record(row["reply_topic"], row["partition_key"], headers, row["response"]),
        version=row["version"],
        subject=row["subject"],
        failure=_failure(row),
        replays=row["replays"],
    )


def _stored(row: asyncpg.Record) -> StoredRequest:
    return StoredRequest(
        key=RequestKey(row["source"], row["id"]),
        deployment=row["deployment"],
        state=RequestState(row["state"]),
        priority=Priority(row["priority"]),
        deadline=row["deadline"],
        attempts=row["attempts"],
        reply_topic=row["reply_topic"],
        partition_key=row["partition_key"],
        content_type=row["content_type"],
        version=row["version"],
        failure=_failure(row),
        replays=row["replays"],
        receive_time=row["receive_time"],
        end_time=row["end_time"],
        traceparent=row["traceparent"],
    )
