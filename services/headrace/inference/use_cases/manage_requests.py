"""What operators do with asynchronous requests."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from headrace.errors import FailedPrecondition
from headrace.inference.domain.requests import Failure, RequestKey, RequestState
from headrace.inference.use_cases.request_ports import Ended, RequestStore, Responses, StoredRequest
from headrace.inference.use_cases.responses import Envelope, ResponseWriter
from headrace.runtime.clock import Clock


class ManageRequests:
    """The use cases."""

    def __init__(
        self,
        store: RequestStore,
        writer: ResponseWriter,
        responses: Responses,
        clock: Clock,
        interrupt: Callable[[RequestKey], None],
    ) -> None:
        """`interrupt` ends the work on a request that this instance has."""
        self._store = store
        self._writer = writer
        self._responses = responses
        self._clock = clock
        self._interrupt = interrupt

    async def get(self, request_id: str, source: str) -> StoredRequest:
        """One request. Raises NotFound, FailedPrecondition."""
        return await self._store.find(request_id, source)

    async def list_requests(
        self, deployment: str, state: RequestState | None, before: datetime | None, before_id: str, limit: int
    ) -> list[StoredRequest]:
        """Requests, newest first."""
        return await self._store.list_requests(deployment, state, before, before_id, limit)

    async def cancel(self, request_id: str, source: str) -> StoredRequest:
        """End a request that waits. Raises NotFound, FailedPrecondition.

        Its response is published by whoever has its record in work, or reads it next.
        """
        found = await self._store.find(request_id, source)
        if found.state.ended:
            raise _ended(found)
        failure = Failure("CANCELLED", "CANCELLED", "the request was cancelled")
        now = self._clock()
        ended = Ended(
            key=found.key,
            state=RequestState.CANCELLED,
            time=now,
            attempts=found.attempts,
            response=self._writer.failed(_envelope(found), failure, found.attempts, now),
            failure=failure,
            replays=found.replays,
        )
        (stored,) = await self._store.end([ended])
        if stored is None or stored.ended is not ended:
            # Ended in this moment, and perhaps replayed.
            return await self.cancel(found.key.id, found.key.source)
        self._interrupt(found.key)
        return await self._store.find(found.key.id, found.key.source)

    async def replay(self, request_id: str, source: str, timeout: timedelta | None) -> StoredRequest:
        """Publish a stored answer again, or run anew what ended without one.

        Raises NotFound, FailedPrecondition.
        """
        found = await self._store.find(request_id, source)
        if found.state is RequestState.ANSWERED:
            response = await self._store.response(found.key)
            if response is not None:
                await self._responses.publish([response])
            return found
        deadline = None if timeout is None else self._clock() + timeout
        if not await self._store.run_again(found.key, deadline):
            if found.state in (RequestState.FAILED, RequestState.EXPIRED):
                raise FailedPrecondition(
                    "REQUEST_UNREADABLE",
                    f"request {request_id!r} cannot be run again: nobody can read it; send another one",
                )
            # The instance that has a cancelled one in work keeps its record when it notices.
            todo = "try again in a second" if found.state.ended else "wait for it, or cancel it"
            raise FailedPrecondition("REQUEST_NOT_ENDED", f"request {request_id!r} has not ended yet: {todo}")
        return await self._store.find(found.key.id, found.key.source)


def _ended(found: StoredRequest) -> FailedPrecondition:
    return FailedPrecondition(
        "REQUEST_ENDED", f"request {found.key.id!r} has ended already: it is {found.state.lower()}"
    )


def _envelope(found: StoredRequest) -> Envelope:
    return Envelope(
        key=found.key,
        deployment=found.deployment,
        topic=found.reply_topic,
        partition_key=found.partition_key,
        content_type=found.content_type,
        traceparent=found.traceparent,
        replays=found.replays,
    )


class ForgetRequests:
    """The use case: a request is remembered for as long as it may be read from the topic again."""

    def __init__(self, store: RequestStore, clock: Clock, retention: timedelta) -> None:
        self._store = store
        self._clock = clock
        self._retention = retention

    async def __call__(self) -> int:
        """Forget the others; how many there were."""
        return await self._store.forget(self._clock() - self._retention)
