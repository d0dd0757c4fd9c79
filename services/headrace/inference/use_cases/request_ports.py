"""What asynchronous requests need from outside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from headrace.inference.domain.requests import (
    Cause,
    Failure,
    Priority,
    RequestKey,
    RequestState,
    Terms,
    cause_of,
)
from headrace.messaging.events import Event, Headers


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a topic."""

    topic: str
    key: str
    headers: Headers
    value: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was read from the topic, before its payload is looked at.

    `wrong`: why it cannot be run, where its attributes say so already.
    """

    key: RequestKey
    event: Event
    terms: Terms
    received: datetime
    wrong: Failure | None = None

    @property
    def deployment(self) -> str:
        """Whom it is for, by its event."""
        return self.event.subject

    @property
    def partition_key(self) -> str:
        """Kafka's key of its response, so that those of one key are in order."""
        return self.event.extensions.get("partitionkey", "") or self.event.id


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run of a request ended, and the response that says so.

    `record`: the request's own, where it may be replayed. `replays`: how often it was, by which its runs are
    told apart.
    """

    key: RequestKey
    state: RequestState
    time: datetime
    attempts: int
    response: Record
    version: str = ""
    subject: str = ""
    failure: Failure | None = None
    record: Record | None = None
    replays: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What is stored of a request that was read: how it ended, if it has, and how often it was replayed.

    `deadline`: that of the last replay, where there was one.
    """

    replays: int = 0
    deadline: datetime | None = None
    ended: Ended | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """A request that says whose data it is about."""

    key: RequestKey
    subject: str


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request as its requester's operators see it."""

    key: RequestKey
    deployment: str
    state: RequestState
    priority: Priority
    deadline: datetime | None
    attempts: int
    reply_topic: str
    partition_key: str
    content_type: str
    version: str
    failure: Failure | None
    replays: int
    receive_time: datetime
    end_time: datetime | None
    traceparent: str


class RequestStore(Protocol):
    """The table of requests; each method is one transaction."""

    async def receive(self, asked: Sequence[Asked]) -> Sequence[Known]:
        """Remember those that are new; what is known of each."""

    async def end(self, ended: Sequence[Ended]) -> Sequence[Known | None]:
        """Store how runs ended, of requests that have not ended yet; what is known of each one now.

        One that was replayed since has not ended: what was given is of an old run.
        None: nothing of it is, for its subject was erased since it was sent.
        """

    async def stale(self, runs: Mapping[RequestKey, int]) -> Collection[RequestKey]:
        """Of these runs, by how often each was replayed: those that ended, or were replayed since."""

    async def erased(self, named: Sequence[Named]) -> Sequence[bool]:
        """Whether each subject was erased since its request was sent, from the data of its model."""

    async def find(self, request_id: str, source: str) -> StoredRequest:
        """One request. Raises NotFound, FailedPrecondition."""

    async def response(self, key: RequestKey) -> Record | None:
        """The stored response of a request that has ended."""

    async def list_requests(
        self, deployment: str, state: RequestState | None, before: datetime | None, before_id: str, limit: int
    ) -> list[StoredRequest]:
        """Requests, newest first."""

    async def run_again(self, key: RequestKey, deadline: datetime | None) -> bool:
        """Make one that ended without an answer wait again, and send its event again; False: it did not."""

    async def forget(self, before: datetime) -> int:
        """Remove what was received before and has ended; how many."""


class CallFailed(Exception):  # noqa: N818 - what it is, not what to call it
    """The data plane refused a call, or a model failed: gRPC's name of the code, and its message.

    `cause`: where more is known than the code says by itself; `reason`: another one than the code.
    """

    def __init__(self, code: str, message: str, cause: Cause | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.cause = cause_of(code) if cause is None else cause
        self.reason = reason or code


class DataPlaneCalls(Protocol):
    """The synchronous data plane."""

    async def infer(self, request: bytes, *, seconds: float | None, traceparent: str) -> bytes:
        """Ask with a ModelInferRequest, answered by a ModelInferResponse. Raises CallFailed."""


class WrongRequest(Exception):  # noqa: N818
    """The payload is not one that could be asked with. `code`: that of a call which is wrong in this way."""

    def __init__(self, reason: str, message: str, code: str = "INVALID_ARGUMENT") -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code


@dataclass(frozen=True, slots=True)
class Question:
    """What a payload asks: a ModelInferRequest in Protobuf, and whose data it is about."""

    payload: bytes
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A ModelInferResponse in the request's own form, and the version that answered."""

    payload: bytes
    version: str


class Protocols(Protocol):
    """The Open Inference Protocol in its forms."""

    def question(self, event: Event) -> Question:
        """Read a request. Raises WrongRequest."""

    def answer(self, response: bytes, content_type: str) -> Answer:
        """Write an answer in the form of a request with that content type."""

    def failure(self, failure: Failure, attempts: int, content_type: str) -> bytes:
        """Write why there is none, in the same form."""


class Payloads(Protocol):
    """Payloads that are too large for a topic."""

    async def fetched(self, event: Event) -> Event:
        """The event with the payload that it claims. Raises WrongRequest, Unavailable."""

    async def fitting(self, event: Event) -> Event:
        """The event, as a claim check where it is too large. Raises Unavailable."""


class Responses(Protocol):
    """The topics of responses."""

    async def publish(self, records: Sequence[Record]) -> None:
        """Publish records, and return when the broker has them."""
