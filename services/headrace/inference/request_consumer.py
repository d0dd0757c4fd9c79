"""Request events to the use case, and its responses to their topics."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from headrace.inference.domain.requests import (
    Failure,
    InvalidTerms,
    RequestKey,
    RequestState,
    Terms,
    read_terms,
)
from headrace.inference.use_cases.answer_requests import SUBJECT_ERASED, AnswerRequests
from headrace.inference.use_cases.request_ports import Asked, Record
from headrace.messaging.consumer import PermanentFailure
from headrace.messaging.events import Event
from headrace.messaging.producer import Producer
from headrace.messaging.topics import INFERENCE_RESPONSES
from headrace.runtime.clock import Clock

REQUEST: Final = "headrace.inference.request.v1"
# What an index of PostgreSQL certainly takes, and no more than a name needs.
_MAX_NAME_BYTES: Final = 256


class RequestConsumer:
    """The handler of the requests' topic."""

    def __init__(
        self, answer: AnswerRequests, clock: Clock, *, reply_topics: Collection[str], retries: int
    ) -> None:
        """`reply_topics`: where answers may go beside the topic of responses; `retries`: the default."""
        self._answer = answer
        self._clock = clock
        self._reply_topics = reply_topics
        self._retries = retries

    async def requests(self, event: Event) -> None:
        """Answer a request. Raises PermanentFailure where it goes to the dead letters, too."""
        names = (event.id, event.source, event.subject, event.extensions.get("partitionkey", ""))
        if any(len(name.encode()) > _MAX_NAME_BYTES or "\0" in name for name in names):
            # No row could hold it, so that nobody would find its answer.
            raise PermanentFailure(
                "INVALID_NAME",
                "ce_id, ce_source, ce_subject and ce_partitionkey are texts of at most "
                f"{_MAX_NAME_BYTES} bytes without U+0000",
            )
        ended = await self._answer(self._asked(event))
        failure = ended.failure if ended.state is RequestState.FAILED else None
        # Of what was erased no copy is made.
        if failure is not None and failure.reason != SUBJECT_ERASED:
            raise PermanentFailure(failure.reason, failure.message)

    def _asked(self, event: Event) -> Asked:
        wrong = None
        terms = Terms(INFERENCE_RESPONSES, retries=self._retries)
        try:
            terms = read_terms(
                event.extensions,
                event.time,
                reply_topic=INFERENCE_RESPONSES,
                reply_topics=self._reply_topics,
                retries=self._retries,
            )
        except InvalidTerms as error:
            wrong = Failure("INVALID_ARGUMENT", error.reason, str(error))
        if event.type != REQUEST:
            wrong = Failure("INVALID_ARGUMENT", "UNKNOWN_TYPE", f"ce_type must be {REQUEST}")
        elif not event.subject:
            wrong = Failure("INVALID_ARGUMENT", "DEPLOYMENT_MISSING", "ce_subject must name a deployment")
        return Asked(RequestKey(event.source, event.id), event, terms, self._clock(), wrong)


class PublishedResponses:
    """Responses on their topics."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def publish(self, records: Sequence[Record]) -> None:
        """Publish records, and return when the broker has them."""
        encoded = [(record.topic, record.key, record.headers, record.value) for record in records]
        if sum(len(record.value) for record in records) > _SMALL_BYTES:
            await self._producer.publish_encoded(encoded)
        else:
            await self._producer.publish_batches(encoded)


# Of all together: batches are for many small ones.
_SMALL_BYTES: Final = 4 << 20
