"""Asynchronous requests: each is answered, or told why not, exactly once in effect.

What happens to one, and what a crash behind each step leaves:

1. It is stored as RECEIVED. Its record is read again, found RECEIVED, and run.
2. It has its turn and is sent to the data plane. The same; the model is asked once more.
3. How it ended is stored with the response, whole. Its record is read again, and that response is published.
4. The response is published. It is published again, byte for byte, with the same `ce_id`.
5. Its record's offset is committed by the consumer.

Of several that run one request at once the first to store decides, and all publish what is stored. One that
was replayed meanwhile has not ended by that: whoever has its old run makes the new one of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from headrace.errors import Unavailable, one_line
from headrace.inference.domain.requests import (
    REQUEST_TOO_LARGE,
    Cause,
    Failure,
    RequestKey,
    RequestState,
    Verdict,
    after_failure,
)
from headrace.inference.domain.turns import Turns
from headrace.inference.use_cases import request_metrics as metrics
from headrace.inference.use_cases.batching import Batches
from headrace.inference.use_cases.request_ports import (
    Asked,
    CallFailed,
    DataPlaneCalls,
    Ended,
    Known,
    Named,
    Payloads,
    Protocols,
    Record,
    RequestStore,
    Responses,
    WrongRequest,
)
from headrace.inference.use_cases.responses import Envelope, ResponseWriter
from headrace.messaging.claims import REFERENCE
from headrace.messaging.events import Event, encode
from headrace.messaging.topics import INFERENCE_REQUESTS
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.runtime.outage import is_outage
from headrace.telemetry import tracing

logger = logging.getLogger(__name__)

_BATCH: Final = 500
_SLACK: Final = 0.05
# gRPC's, before each message; the data plane counts them.
_FRAME_BYTES: Final = 5
_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 5.0
_LOOK_SECONDS: Final = 1.0


class AnswerRequests:
    """The use case. Any number of instances may, each with partitions of its own."""

    def __init__(
        self,
        store: RequestStore,
        calls: DataPlaneCalls,
        protocols: Protocols,
        payloads: Payloads,
        responses: Responses,
        clock: Clock,
        *,
        most_at_once: int,
        max_request_bytes: int,
    ) -> None:
        """`most_at_once`: calls of one deployment under way; the data plane takes `max_request_bytes`."""
        self._store = store
        self._calls = calls
        self._protocols = protocols
        self._payloads = payloads
        self._clock = clock
        self._max_request_bytes = max_request_bytes
        self._writer = ResponseWriter(protocols, payloads)
        self._receive = Batches[Asked, Known](store.receive, most=_BATCH)
        self._erased = Batches[Named, bool](store.erased, most=_BATCH)
        self._end = Batches[Ended, Known | None](store.end, most=_BATCH)
        self._responses = responses
        # One for each topic: a topic that takes nothing must not hold up the others.
        self._publishers: dict[str, Batches[Record, None]] = {}
        self._turns = _Waiting(Turns[_Ticket](most=most_at_once, first=max(1, most_at_once // 4)))
        self._running: dict[RequestKey, asyncio.Future[Ended]] = {}
        self._runs: dict[RequestKey, _Run] = {}
        # The last one of each order: the next one waits for it.
        self._orders: dict[str, asyncio.Future[Ended]] = {}

    async def __call__(self, asked: Asked) -> Ended:
        """Answer a request; how it ended. A part that is away is waited for."""
        if (running := self._running.get(asked.key)) is not None:
            # It came twice, and is answered once.
            return await asyncio.shield(running)
        ending: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()
        self._running[asked.key] = ending
        before = self._orders.get(asked.terms.order)
        if asked.terms.order:
            self._orders[asked.terms.order] = ending
        try:
            ended = await self._patiently(asked, before)
        except BaseException as error:
            ending.set_exception(
                error
                if isinstance(error, Exception)
                else Unavailable("INTERRUPTED", "the request is answered elsewhere, or later")
            )
            # Whoever waits for it hears it; there may be nobody.
            ending.exception()
            raise
        else:
            ending.set_result(ended)
            return ended
        finally:
            del self._running[asked.key]
            if self._orders.get(asked.terms.order) is ending:
                del self._orders[asked.terms.order]

    def interrupt(self, key: RequestKey) -> None:
        """Stop working on a request, whose end is stored already."""
        if run := self._runs.get(key):
            run.interrupt()

    async def look_for_ends(self) -> None:
        """Until cancelled, stop what somebody else ends: an operator who asked another instance."""
        seen: dict[RequestKey, _Run] = {}
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            # What was there the last time too: whatever takes less is not asked about.
            lasting = {key: run for key, run in self._runs.items() if seen.get(key) is run}
            seen = dict(self._runs)
            if not lasting:
                continue
            try:
                stale = await self._store.stale({key: run.replays for key, run in lasting.items()})
            except Exception as error:
                logger.warning("ends of requests could not be looked for, trying again: %s", one_line(error))
                continue
            for key in stale:
                # By now it may have another run.
                if self._runs.get(key) is lasting[key]:
                    lasting[key].interrupt()

    async def _patiently(self, asked: Asked, before: asyncio.Future[Ended] | None) -> Ended:
        # Here and not by the consumer: the next one of its order must not come first.
        pauses = _Pauses()
        while True:
            try:
                return await self._answer(asked, before)
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("request %s waits: %s", asked.key.id, one_line(error))
            await pauses.pause()

    async def _answer(self, asked: Asked, before: asyncio.Future[Ended] | None) -> Ended:
        known = await self._receive(asked)
        fault_point("inference.after-request-stored")
        ended = known.ended
        if ended is None:
            ended = await self._run_to_its_end(asked, known, before)
            metrics.REQUESTS.labels(ended.state.lower()).inc()
            fault_point("inference.after-answer-stored")
        else:
            metrics.REPEATED.inc()
        await self._publisher(ended.response.topic)(ended.response)
        fault_point("inference.after-answer-published")
        return ended

    async def _run_to_its_end(
        self, asked: Asked, known: Known, before: asyncio.Future[Ended] | None
    ) -> Ended:
        while True:
            stored = await self._end(await self._run(_replayed(asked, known), known.replays, before))
            if stored is None:
                # Whoever reads its record again comes to the same.
                return self._unanswerable(asked, known.replays)
            if stored.ended is not None:
                return stored.ended
            # Ended by somebody else, and replayed. Its new record is here perhaps, and waits for this one.
            known = stored

    async def _run(self, asked: Asked, replays: int, before: asyncio.Future[Ended] | None) -> Ended:
        attempts = _Attempts()
        try:
            async with asyncio.timeout_at(self._loop_time(asked.terms.deadline)) as scope:
                self._runs[asked.key] = _Run(scope, replays)
                try:
                    return await self._asked(asked, replays, before, attempts)
                finally:
                    run = self._runs.pop(asked.key)
        except _DeadlinePassed:
            pass
        except TimeoutError:
            if not scope.expired():
                raise
        if run.interrupted:
            # The end that somebody else has stored counts, and not this one.
            failure = Failure("CANCELLED", "CANCELLED", "the request was cancelled")
            return self._ended(asked, replays, RequestState.CANCELLED, attempts, failure)
        where = "while a model worked on it" if attempts.sent else "before a model was asked"
        failure = Failure("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", f"the deadline passed {where}")
        return self._ended(asked, replays, RequestState.EXPIRED, attempts, failure)

    async def _asked(
        self,
        asked: Asked,
        replays: int,
        before: asyncio.Future[Ended] | None,
        attempts: _Attempts,
    ) -> Ended:
        """Ask until there is an answer, or a failure that stays."""
        if before is not None:
            await asyncio.wait([before])
        if asked.wrong is not None:
            return self._ended(asked, replays, RequestState.FAILED, attempts, asked.wrong)
        try:
            while True:
                try:
                    async with self._turns.turn(asked) as turn:
                        return await self._call(asked, replays, attempts, turn)
                except CallFailed as error:
                    attempts.failures += error.cause is not Cause.BUSY
                    verdict = after_failure(error.cause, attempts.failures, asked.terms.retries)
                    if verdict is Verdict.GIVE_UP:
                        failure = Failure(error.code, error.reason, error.message)
                        return self._ended(asked, replays, RequestState.FAILED, attempts, failure)
                    metrics.RETRIES.labels("refused" if verdict is Verdict.WAIT else "failed").inc()
                await attempts.pauses.pause()
        except WrongRequest as error:
            failure = Failure(error.code, error.reason, str(error))
            return self._ended(asked, replays, RequestState.FAILED, attempts, failure)

    async def _call(self, asked: Asked, replays: int, attempts: _Attempts, turn: _Turn) -> Ended:
        # Only now: no more payloads are in memory than are asked with.
        event = await self._payloads.fetched(asked.event)
        question = self._protocols.question(event)
        attempts.subject = question.subject
        if question.subject and await self._erased(Named(asked.key, question.subject)):
            return self._unanswerable(asked, replays, question.subject)
        if len(question.payload) + _FRAME_BYTES > self._max_request_bytes:
            message = f"the request is larger than {self._max_request_bytes} bytes"
            failure = Failure("RESOURCE_EXHAUSTED", REQUEST_TOO_LARGE, message)
            return self._ended(asked, replays, RequestState.FAILED, attempts, failure)
        deadline = asked.terms.deadline
        if deadline is not None and self._clock() >= deadline:
            raise _DeadlinePassed
        attempts.sent += 1
        fault_point("inference.before-request-sent")
        try:
            response = await self._calls.infer(
                question.payload,
                seconds=self._seconds_left(deadline),
                traceparent=_traceparent(asked.event),
            )
        except CallFailed as error:
            turn.refused = error.cause is Cause.BUSY
            raise
        answer = self._protocols.answer(response, asked.event.content_type)
        now = self._clock()
        return Ended(
            key=asked.key,
            state=RequestState.ANSWERED,
            time=now,
            attempts=attempts.sent,
            response=await self._writer.answered(_envelope(asked, replays), answer, now),
            version=answer.version,
            subject=question.subject,
            replays=replays,
        )

    def _ended(
        self, asked: Asked, replays: int, state: RequestState, attempts: _Attempts, failure: Failure
    ) -> Ended:
        now = self._clock()
        subject = self._subject(asked.event)
        return Ended(
            key=asked.key,
            state=state,
            time=now,
            attempts=attempts.sent,
            response=self._writer.failed(_envelope(asked, replays), failure, attempts.sent, now),
            subject=attempts.subject or subject or "",
            failure=failure,
            record=None if subject is None else _request_record(asked),
            replays=replays,
        )

    def _unanswerable(self, asked: Asked, replays: int, subject: str = "") -> Ended:
        """The end of a request whose subject was erased since it was sent. Nothing of it is stored."""
        now = self._clock()
        return Ended(
            key=asked.key,
            state=RequestState.FAILED,
            time=now,
            attempts=0,
            response=self._writer.failed(_envelope(asked, replays), _ERASED, 0, now),
            subject=subject,
            failure=_ERASED,
            replays=replays,
        )

    def _subject(self, event: Event) -> str | None:
        """Whom a payload names, where it lies in the event itself; None where it cannot be read.

        What nobody can read nobody could erase, and running it again is of no use: it is not kept.
        """
        if REFERENCE in event.extensions and not event.data:
            return ""
        try:
            return self._protocols.question(event).subject
        except WrongRequest:
            return None

    def _publisher(self, topic: str) -> Batches[Record, None]:
        publisher = self._publishers.get(topic)
        if publisher is None:
            publisher = self._publishers[topic] = Batches(self._publish, most=_BATCH)
        return publisher

    async def _publish(self, records: Sequence[Record]) -> Sequence[None]:
        await self._responses.publish(records)
        return [None] * len(records)

    def _seconds_left(self, deadline: datetime | None) -> float | None:
        # A little more: that it has passed is found here, and no failure of the data plane.
        return None if deadline is None else max(0.0, (deadline - self._clock()).total_seconds()) + _SLACK

    def _loop_time(self, deadline: datetime | None) -> float | None:
        if deadline is None:
            return None
        return asyncio.get_running_loop().time() + (deadline - self._clock()).total_seconds()


SUBJECT_ERASED: Final = "SUBJECT_ERASED"
_ERASED: Final = Failure(
    "FAILED_PRECONDITION", SUBJECT_ERASED, "the data of the request's subject was erased after it was sent"
)


class _DeadlinePassed(Exception):  # noqa: N818 - it is no failure
    pass


class _Run:
    """The work on a request, which may be ended from outside."""

    def __init__(self, scope: asyncio.Timeout, replays: int) -> None:
        self._scope = scope
        self.replays = replays
        self.interrupted = False

    def interrupt(self) -> None:
        """Stop it."""
        if not self._scope.expired():
            self.interrupted = True
            self._scope.reschedule(asyncio.get_running_loop().time())


class _Pauses:
    """Growing pauses, spread so that those who were refused together do not come together."""

    def __init__(self) -> None:
        self._count = 0

    async def pause(self) -> None:
        """Wait for the next one."""
        self._count += 1
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(self._count, 16))
        await asyncio.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - no secret


@dataclass(slots=True)
class _Attempts:
    """What was tried for one request."""

    sent: int = 0
    failures: int = 0
    subject: str = ""
    pauses: _Pauses = field(default_factory=_Pauses)


@dataclass(slots=True)
class _Turn:
    refused: bool = False


@dataclass(slots=True, eq=False)
class _Ticket:
    deployment: str
    called: asyncio.Future[None]


class _Waiting:
    """Turns that are waited for."""

    def __init__(self, turns: Turns[_Ticket]) -> None:
        self._turns = turns

    @asynccontextmanager
    async def turn(self, asked: Asked) -> AsyncIterator[_Turn]:
        """Wait for a turn, and have it within the block."""
        deployment, priority = asked.deployment, asked.terms.priority
        ticket = _Ticket(deployment, asyncio.get_running_loop().create_future())
        self._turns.wait(deployment, priority, ticket)
        self._give()
        try:
            await ticket.called
        except BaseException:
            if ticket.called.cancelled():
                self._turns.leave(deployment, priority, ticket)
            else:
                # It was called in the moment in which it went.
                self._end(deployment, refused=False)
            raise
        turn = _Turn()
        metrics.UNDER_WAY.inc()
        try:
            yield turn
        finally:
            metrics.UNDER_WAY.dec()
            self._end(deployment, refused=turn.refused)

    def _end(self, deployment: str, *, refused: bool) -> None:
        self._turns.end(deployment, refused=refused)
        self._give()

    def _give(self) -> None:
        while (ticket := self._turns.next()) is not None:
            if ticket.called.cancelled():
                self._turns.end(ticket.deployment, refused=False)
            else:
                ticket.called.set_result(None)


def _replayed(asked: Asked, known: Known) -> Asked:
    """The request as it was last asked to be run: its first record has a deadline that no more counts."""
    return replace(asked, terms=replace(asked.terms, deadline=known.deadline)) if known.replays else asked


def _envelope(asked: Asked, replays: int) -> Envelope:
    return Envelope(
        key=asked.key,
        deployment=asked.deployment,
        topic=asked.terms.reply_topic,
        partition_key=asked.partition_key,
        content_type=asked.event.content_type,
        traceparent=_traceparent(asked.event),
        replays=replays,
    )


def _traceparent(event: Event) -> str:
    return tracing.current_traceparent() or event.traceparent


def _request_record(asked: Asked) -> Record:
    headers, value = encode(asked.event)
    return Record(INFERENCE_REQUESTS, asked.partition_key, headers, value)
