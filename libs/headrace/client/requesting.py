"""Inference requests over Kafka: submitted as events, and their answers read from a topic."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import grpc
import numpy as np
import orjson
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.utils import triton_to_np_dtype

from headrace.client.inference_protocol import Prediction, Row, infer_request, prediction_from
from headrace.errors import (
    Aborted,
    DataLoss,
    HeadraceError,
    InvalidArgument,
    NotFound,
    Unavailable,
    one_line,
)
from headrace.events.inference.v1 import events_pb2
from headrace.messaging.claims import ClaimMismatch, claim_of, read_claim
from headrace.messaging.client import SHORT_WAIT_MS, consumer_client, reader_client
from headrace.messaging.events import JSON, Event, Headers, InvalidCloudEvent, decode, media_type, parse
from headrace.messaging.topics import INFERENCE_RESPONSES
from headrace.objects.claims import StoredClaims
from headrace.rpc.errors import make_error
from headrace.telemetry.tracing import current_traceparent, new_traceparent

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord

logger = logging.getLogger(__name__)

REQUEST_TYPE: Final = "headrace.inference.request.v1"
ANSWERED_TYPE: Final = "headrace.inference.response.v1"
FAILED_TYPE: Final = "headrace.inference.request-failed.v1"

Priority: TypeAlias = Literal["high", "normal", "low"]
Key: TypeAlias = tuple[str, str]
"""A request's source and id."""

# The service keeps no longer ones, and answers nobody who sends them.
_MAX_NAME_BYTES: Final = 256
_CLIENT_ID: Final = "headrace-client"
_POLL_MS: Final = 200
_CONNECT_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended: with a prediction, or with the error that a call would have raised.

    `id` is the response event's own: an answer that comes twice has the same one. The error is NotFound or
    DataLoss where the answer was too large for Kafka, and is not in the object store as it should be.
    """

    id: str
    request_id: str
    source: str
    deployment: str
    prediction: Prediction | None = None
    error: HeadraceError | None = None

    def result(self) -> Prediction:
        """The prediction. Raises the error where there is none."""
        if self.error is not None:
            raise self.error
        assert self.prediction is not None
        return self.prediction


@dataclass(frozen=True, slots=True)
class SubmittedRequest:
    """A request that the broker has. It will be answered, whatever becomes of this program."""

    id: str
    source: str
    deployment: str
    _response: asyncio.Future[Event]
    _read: Callable[[Event], Awaitable[Answer]]

    async def answer(self) -> Prediction:
        """Wait for its answer, for as long as it takes: `asyncio.timeout` ends the waiting, not the request.

        Raises the HeadraceError that says why there is none, and Unavailable BROKER_UNAVAILABLE or
        STORE_UNAVAILABLE where it cannot be read.
        """
        # Several may wait, and one that waits no more must not take the answer from the others.
        return (await self._read(await asyncio.shield(self._response))).result()


class Requests:
    """One client's requests over Kafka. What it opens is closed with `opened`."""

    def __init__(
        self,
        bootstrap: str,
        opened: AsyncExitStack,
        publish: Callable[[str, Event], Awaitable[None]],
        claims: Callable[[], StoredClaims],
    ) -> None:
        """`publish` an event under a key; `claims`: the store's payloads, where an answer is one of them."""
        self._bootstrap = bootstrap
        self._opened = opened
        self._publish = publish
        self._claims = claims
        self._lock = asyncio.Lock()
        self._responses: _Responses | None = None

    async def submit(
        self,
        deployment: str,
        features: Sequence[Row] | NDArray[np.floating[Any]],
        *,
        request_id: str,
        source: str,
        version: str,
        subject: str,
        segment: str,
        priority: Priority,
        deadline: timedelta | None,
        retries: int | None,
        order: str,
    ) -> SubmittedRequest:
        """See `HeadraceClient.submit`."""
        request_id = request_id or str(uuid.uuid4())
        for what, text in (("request_id", request_id), ("source", source), ("order", order)):
            if len(text.encode()) > _MAX_NAME_BYTES or "\0" in text:
                raise InvalidArgument(
                    "INVALID_NAME", f"{what} must be a text of at most {_MAX_NAME_BYTES} bytes without U+0000"
                )
        message = infer_request(
            deployment,
            features,
            version=version,
            prediction_id=request_id,
            subject=subject,
            segment=segment,
        )
        event = Event(
            id=request_id,
            source=source,
            type=REQUEST_TYPE,
            subject=deployment,
            time=datetime.now(UTC),
            data=message.SerializeToString(),
            traceparent=current_traceparent() or new_traceparent(),
            extensions=_attributes(priority, deadline, retries, order),
        )
        responses = await self._open_responses()
        # Before it is sent: its answer may be there before the broker's word is.
        response = responses.wait_for((source, request_id))
        await self._publish(order or request_id, event)
        return SubmittedRequest(request_id, source, deployment, response, self.read)

    async def answers(self, group: str, topic: str) -> AsyncIterator[Answer]:
        """See `HeadraceClient.answers`."""
        unopened = consumer_client(self._bootstrap, group=group, client_id=_CLIENT_ID, wait_ms=SHORT_WAIT_MS)
        async with _opened(unopened, self._bootstrap, topic) as client:
            while True:
                try:
                    batches = await client.getmany(timeout_ms=_POLL_MS)
                except KafkaError as error:
                    raise _unavailable(self._bootstrap, error) from error
                for partition, records in batches.items():
                    done = None
                    try:
                        for record in records:
                            if (event := _response(record)) is not None:
                                yield await self.read(event)
                            done = record.offset + 1
                    finally:
                        # Also where whoever reads has enough: what it did not come back from comes again.
                        if done is not None:
                            with suppress(KafkaError):
                                await client.commit({partition: done})

    async def read(self, event: Event) -> Answer:
        """Read a response. Raises Unavailable where the object store does not give what it has of it."""
        answer = Answer(
            id=event.id,
            request_id=event.extensions.get("requestid", ""),
            source=event.extensions.get("requestsource", ""),
            deployment=event.subject,
        )
        if event.type == FAILED_TYPE:
            return replace(answer, error=_error(event))
        try:
            whole = await self._with_payload(event)
        except (DataLoss, NotFound) as error:
            # For good: whoever reads all answers must come past it.
            return replace(answer, error=error)
        return replace(answer, prediction=_prediction(whole, answer.request_id))

    async def _with_payload(self, event: Event) -> Event:
        claim = claim_of(event)
        if claim is None:
            return event
        claims = self._claims()
        path = claims.path(claim.reference)
        if path is None:
            raise NotFound("OBJECT_NOT_FOUND", f"the answer is not below {claims.folder}: {claim.reference}")
        data = bytearray(claim.size)
        try:
            await read_claim(claims, path, claim, memoryview(data))
        except ClaimMismatch as error:
            raise DataLoss("CLAIM_MISMATCH", f"the answer {claim.reference} is damaged: {error}") from error
        return replace(event, data=bytes(data))

    async def _open_responses(self) -> _Responses:
        async with self._lock:
            if self._responses is None or self._responses.ended:
                self._responses = await self._opened.enter_async_context(_responses(self._bootstrap))
            return self._responses


class _Responses:
    """The topic of responses from now on, for those who wait for one of them."""

    def __init__(self, client: AIOKafkaConsumer, bootstrap: str) -> None:
        self._client = client
        self._bootstrap = bootstrap
        self._waiting: dict[Key, asyncio.Future[Event]] = {}
        self.ended = False

    def wait_for(self, key: Key) -> asyncio.Future[Event]:
        """The response to a request, once it is read."""
        response = self._waiting.get(key)
        if response is None:
            response = self._waiting[key] = asyncio.get_running_loop().create_future()
        return response

    async def run(self) -> None:
        """Read until cancelled."""
        try:
            while True:
                batches = await self._client.getmany(timeout_ms=_POLL_MS)
                for records in batches.values():
                    for record in records:
                        self._take(record)
        except KafkaError as error:
            self.give_up(_unavailable(self._bootstrap, error))

    def _take(self, record: ConsumerRecord) -> None:
        # Most are others': they are not read.
        key = _key(record.headers)
        if key not in self._waiting:
            return
        event = _response(record)
        if event is not None and not (response := self._waiting.pop(key)).done():
            response.set_result(event)

    def give_up(self, error: HeadraceError) -> None:
        """Tell all who wait that they wait in vain."""
        self.ended = True
        for response in self._waiting.values():
            if not response.done():
                response.set_exception(error)
                # There may be nobody who waits.
                response.exception()
        self._waiting.clear()


@asynccontextmanager
async def _responses(bootstrap: str) -> AsyncIterator[_Responses]:
    unopened = reader_client(bootstrap, client_id=_CLIENT_ID)
    async with _opened(unopened, bootstrap, INFERENCE_RESPONSES) as client:
        # What is asked from now on is answered behind this.
        await client.seek_to_end()
        responses = _Responses(client, bootstrap)
        reading = asyncio.create_task(responses.run())
        closed = Unavailable("CLIENT_CLOSED", "the client was closed before the answer came")
        # Also of one that had not begun yet.
        reading.add_done_callback(lambda _: responses.give_up(closed))
        try:
            yield responses
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


@asynccontextmanager
async def _opened(client: AIOKafkaConsumer, bootstrap: str, topic: str) -> AsyncIterator[AIOKafkaConsumer]:
    client.subscribe([topic])
    try:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await client.start()
        except UnknownTopicOrPartitionError as error:
            raise NotFound(
                "TOPIC_NOT_FOUND", f"the broker at {bootstrap} has no topic {topic}: start its stack first"
            ) from error
        except (KafkaError, TimeoutError) as error:
            raise _unavailable(bootstrap, error) from error
        yield client
    finally:
        await client.stop()


def _unavailable(bootstrap: str, error: Exception) -> Unavailable:
    return Unavailable("BROKER_UNAVAILABLE", f"the broker at {bootstrap} cannot be read: {one_line(error)}")


def _attributes(
    priority: Priority, deadline: timedelta | None, retries: int | None, order: str
) -> Mapping[str, str]:
    attributes: dict[str, str] = {"priority": priority}
    if deadline is not None:
        attributes["deadline"] = str(max(0, deadline // timedelta(milliseconds=1)))
    if retries is not None:
        attributes["retries"] = str(retries)
    if order:
        attributes |= {"ordered": "true", "partitionkey": order}
    return attributes


def _key(headers: Headers) -> Key:
    texts = dict(headers)
    source, request_id = texts.get("ce_requestsource", b""), texts.get("ce_requestid", b"")
    return source.decode(errors="replace"), request_id.decode(errors="replace")


def _response(record: ConsumerRecord) -> Event | None:
    """The event of a record; None for what is no response."""
    try:
        event = decode(record.headers, record.value, received=datetime.now(UTC))
    except InvalidCloudEvent as error:
        logger.warning("%s/%d/%d is no response: %s", record.topic, record.partition, record.offset, error)
        return None
    return event if event.type in (ANSWERED_TYPE, FAILED_TYPE) else None


def _error(event: Event) -> HeadraceError:
    failed = parse(event, events_pb2.RequestFailed)
    if failed.code == "CANCELLED":
        # Of a call it would mean that the server stops, and that another one may answer.
        return Aborted(failed.reason, failed.error)
    code = getattr(grpc.StatusCode, failed.code, grpc.StatusCode.UNKNOWN)
    return make_error(code, failed.reason, failed.error)


def _prediction(event: Event, prediction_id: str) -> Prediction:
    if media_type(event.content_type) != JSON:
        return prediction_from(service_pb2.ModelInferResponse.FromString(event.data), prediction_id)
    document = orjson.loads(event.data)
    return Prediction(
        prediction_id=document["id"] or prediction_id,
        deployment=document["model_name"],
        version=document["model_version"],
        outputs={output["name"]: _array(output) for output in document["outputs"]},
    )


def _array(output: Mapping[str, Any]) -> NDArray[Any]:
    datatype = output["datatype"]
    kind = object if datatype == "BYTES" else triton_to_np_dtype(datatype)
    return np.array(output["data"], dtype=kind).reshape(output["shape"])
