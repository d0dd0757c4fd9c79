"""Asynchronous inference without its parts: table, data plane and topics in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tritonclient.grpc import service_pb2

from headrace.errors import NotFound
from headrace.inference.domain.requests import Cause, Priority, RequestKey, RequestState, Terms
from headrace.inference.use_cases.request_ports import (
    Asked,
    CallFailed,
    Ended,
    Known,
    Named,
    Record,
    StoredRequest,
    WrongRequest,
)
from headrace.messaging.events import JSON, Event

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RESPONSES = "responses"


class Clock:
    """Time stands still until it is set."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Table:
    """The table of requests."""

    def __init__(self) -> None:
        self.asked: dict[RequestKey, Asked] = {}
        self.replays: dict[RequestKey, int] = {}
        self.deadlines: dict[RequestKey, datetime | None] = {}
        self.ended: dict[RequestKey, Ended] = {}
        self.sent_again: list[RequestKey] = []
        self.subjects_erased: set[str] = set()
        self.away = 0

    def _answering(self) -> None:
        if self.away:
            self.away -= 1
            raise ConnectionError("the database is away")

    async def receive(self, asked: Sequence[Asked]) -> Sequence[Known]:
        await asyncio.sleep(0)
        self._answering()
        for one in asked:
            self.asked.setdefault(one.key, one)
        return [self._known(one.key) for one in asked]

    def _known(self, key: RequestKey) -> Known:
        return Known(self.replays.get(key, 0), self.deadlines.get(key), self.ended.get(key))

    async def end(self, ended: Sequence[Ended]) -> Sequence[Known | None]:
        await asyncio.sleep(0)
        self._answering()
        for one in ended:
            if one.subject not in self.subjects_erased and one.replays == self.replays.get(one.key, 0):
                self.ended.setdefault(one.key, one)
        return [None if one.subject in self.subjects_erased else self._known(one.key) for one in ended]

    async def stale(self, runs: Mapping[RequestKey, int]) -> Collection[RequestKey]:
        await asyncio.sleep(0)
        self._answering()
        return [
            key for key, replays in runs.items() if key in self.ended or replays != self.replays.get(key, 0)
        ]

    async def erased(self, named: Sequence[Named]) -> Sequence[bool]:
        await asyncio.sleep(0)
        return [one.subject in self.subjects_erased for one in named]

    async def find(self, request_id: str, source: str) -> StoredRequest:
        for key, asked in self.asked.items():
            if key.id == request_id and source in ("", key.source):
                ended = self.ended.get(key)
                return StoredRequest(
                    key=key,
                    deployment=asked.deployment,
                    state=ended.state if ended else RequestState.RECEIVED,
                    priority=asked.terms.priority,
                    deadline=asked.terms.deadline,
                    attempts=ended.attempts if ended else 0,
                    reply_topic=asked.terms.reply_topic,
                    partition_key=asked.partition_key,
                    content_type=asked.event.content_type,
                    version=ended.version if ended else "",
                    failure=ended.failure if ended else None,
                    replays=self.replays.get(key, 0),
                    receive_time=asked.received,
                    end_time=ended.time if ended else None,
                    traceparent="",
                )
        raise NotFound("REQUEST_NOT_FOUND", f"no request {request_id}")

    async def response(self, key: RequestKey) -> Record | None:
        ended = self.ended.get(key)
        return ended.response if ended else None

    async def list_requests(
        self, deployment: str, state: RequestState | None, before: datetime | None, before_id: str, limit: int
    ) -> list[StoredRequest]:
        return [await self.find(key.id, key.source) for key in self.asked][:limit]

    async def run_again(self, key: RequestKey, deadline: datetime | None) -> bool:
        ended = self.ended.get(key)
        if ended is None or ended.record is None:
            return False
        del self.ended[key]
        self.replays[key] = self.replays.get(key, 0) + 1
        self.deadlines[key] = deadline
        self.sent_again.append(key)
        return True

    async def forget(self, before: datetime) -> int:
        old = [key for key, asked in self.asked.items() if asked.received < before and key in self.ended]
        for key in old:
            del self.asked[key], self.ended[key]
        return len(old)


@dataclass
class Model:
    """The data plane: answers by what tests say, and counts."""

    behave: Callable[[str, int], None] = lambda _request_id, _attempt: None
    asked: list[str] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    under_way: int = 0
    most: int = 0
    cancelled: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open.set()

    async def infer(self, request: bytes, *, seconds: float | None, traceparent: str) -> bytes:
        read = service_pb2.ModelInferRequest.FromString(request)
        self.asked.append(read.id)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            await self.open.wait()
            self.behave(read.id, self.asked.count(read.id))
        except asyncio.CancelledError:
            self.cancelled.append(read.id)
            raise
        finally:
            self.under_way -= 1
        response = service_pb2.ModelInferResponse(model_name=read.model_name, model_version="7", id=read.id)
        answer: bytes = response.SerializeToString()
        return answer


class Inline:
    """Payloads that all fit; those that claim something are missing."""

    async def fetched(self, event: Event) -> Event:
        if "dataref" in event.extensions:
            raise WrongRequest("CLAIM_MISSING", "there is no such object")
        return event

    async def fitting(self, event: Event) -> Event:
        return event


class Published:
    """The topics of responses."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.away = 0

    async def publish(self, records: Sequence[Record]) -> None:
        await asyncio.sleep(0)
        if self.away:
            self.away -= 1
            raise ConnectionError("the broker is away")
        self.records += records

    def ids(self) -> list[str]:
        """Which requests the responses are to, in their order."""
        return [dict(record.headers)["ce_requestid"].decode() for record in self.records]


def failing(code: str, times: int = 1 << 30, cause: Cause | None = None) -> Callable[[str, int], None]:
    """A model that fails that often for each request."""

    def behave(request_id: str, attempt: int) -> None:
        if attempt <= times:
            raise CallFailed(code, f"{code} it is", cause)

    return behave


def event(request_id: str = "r1", **extensions: str) -> Event:
    return Event(
        id=request_id,
        source="tests",
        type="headrace.inference.request.v1",
        subject="live",
        time=NOW,
        data=b'{"inputs": []}',
        content_type=JSON,
        extensions=extensions,
    )


def asked(
    request_id: str = "r1",
    *,
    seconds: float | None = None,
    order: str = "",
    priority: Priority = Priority.NORMAL,
    retries: int = 2,
    **extensions: str,
) -> Asked:
    deadline = None if seconds is None else NOW + timedelta(seconds=seconds)
    terms = Terms(RESPONSES, priority, deadline, retries, order)
    return Asked(RequestKey("tests", request_id), event(request_id, **extensions), terms, NOW)
