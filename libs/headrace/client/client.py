"""`HeadraceClient`: one object for everything that a program wants of a stack."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, SupportsFloat, TypeVar

import grpc.aio

from headrace.api.inference.v1 import (
    drift_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    requests_pb2_grpc,
    tuning_pb2_grpc,
)
from headrace.api.ingestion.v1 import erasure_pb2_grpc, ingestion_pb2, ingestion_pb2_grpc, versions_pb2_grpc
from headrace.api.registry.v1 import registry_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2_grpc
from headrace.api.training.v1 import training_pb2_grpc
from headrace.client.targets import VARIABLES, Targets
from headrace.errors import InvalidArgument, Unavailable
from headrace.rpc.client import channel
from headrace.rpc.convert import to_timestamp
from headrace.rpc.paging import pages
from headrace.telemetry.tracing import current_traceparent, new_traceparent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from headrace.client.claim_checks import ClaimChecks
    from headrace.client.explaining import Baseline, ExplanationMethod
    from headrace.client.inference_protocol import InferenceProtocol, Prediction, Row
    from headrace.client.requesting import Answer, Priority, Requests, SubmittedRequest
    from headrace.messaging.events import Event
    from headrace.messaging.producer import Producer
    from headrace.objects.claims import StoredClaims

SAMPLE_TYPE: Final = "headrace.ingestion.sample.v1"
FEEDBACK_TYPE: Final = "headrace.inference.feedback.v1"
# As many as one call may have.
LABELS_AT_ONCE: Final = 1000
SOURCE: Final = "headrace/client"
# Samples in flight at once; the broker's acknowledgement is awaited for each such batch.
BATCH: Final = 5000
# Below the 1 MiB that Kafka and ingestion take by default, with room for key and headers.
INLINE_BYTES: Final = 900_000
# Bytes of samples that are held before they are published.
BATCH_BYTES: Final = 32 << 20
# A broker that is away is waited for no longer than this.
PUBLISH_SECONDS: Final = 30.0
# Nor is an object store, for a part of what it is asked for.
STORE_SECONDS: Final = 30.0
# The service's own limit, where nobody has set another.
EXPLAIN_SECONDS: Final = 30.0

Sample = Mapping[str, object] | bytes | str
"""A sample: its fields, or one JSON object as text.

A tensor is an array of numpy in its field's dtype and shape, or the bytes of an image.
"""


class HeadraceClient:
    """A client of one stack, open within `async with`; connections are made when first used.

        async with HeadraceClient.from_environment() as client:
            job = await client.scheduling.GetJob(GetJobRequest(id=...))
            await client.produce("breast-cancer", [{"patient_id": "7", ...}])
            answer = await client.predict("breast-cancer", [[17.99, 10.38, ...]])

    Every call raises `headrace.errors.HeadraceError`.
    """

    def __init__(self, targets: Targets, *, inline_bytes: int = INLINE_BYTES) -> None:
        """`inline_bytes`: a sample with a larger payload is sent as a claim check."""
        self.targets = targets
        self._inline_bytes = inline_bytes
        self._open = AsyncExitStack()
        self._producer: Producer | None = None
        self._claims: ClaimChecks | None = None
        self._producer_lock = asyncio.Lock()

    @classmethod
    def from_environment(cls, data: Path | None = None) -> Self:
        """Return a client for what the environment names, or else for the embedded stack in `data`."""
        return cls(Targets.discover(data))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._open.aclose()

    @cached_property
    def ingestion(self) -> ingestion_pb2_grpc.IngestionServiceAsyncStub:
        """Datasets, versions, rejected samples."""
        return ingestion_pb2_grpc.IngestionServiceStub(self._channel("ingestion"))

    @cached_property
    def dataset_versions(self) -> versions_pb2_grpc.DatasetVersionServiceAsyncStub:
        """Profiles, comparison, tags, pins, rows and replays of dataset versions."""
        return versions_pb2_grpc.DatasetVersionServiceStub(self._channel("ingestion"))

    @cached_property
    def erasures(self) -> erasure_pb2_grpc.ErasureServiceAsyncStub:
        """Erasure of subjects' data."""
        return erasure_pb2_grpc.ErasureServiceStub(self._channel("ingestion"))

    @cached_property
    def scheduling(self) -> scheduling_pb2_grpc.SchedulingServiceAsyncStub:
        """Pipelines, jobs, nodes."""
        return scheduling_pb2_grpc.SchedulingServiceStub(self._channel("scheduling"))

    @cached_property
    def training(self) -> training_pb2_grpc.TrainingServiceAsyncStub:
        """Runs and their logs."""
        return training_pb2_grpc.TrainingServiceStub(self._channel("training"))

    @cached_property
    def registry(self) -> registry_pb2_grpc.RegistryServiceAsyncStub:
        """Models, versions, artifacts."""
        return registry_pb2_grpc.RegistryServiceStub(self._channel("registry"))

    @cached_property
    def inference(self) -> inference_pb2_grpc.InferenceServiceAsyncStub:
        """Deployments, rollouts, predictions, quality."""
        return inference_pb2_grpc.InferenceServiceStub(self._channel("inference"))

    @cached_property
    def inference_requests(self) -> requests_pb2_grpc.RequestServiceAsyncStub:
        """Requests over Kafka: status, cancel, replay."""
        return requests_pb2_grpc.RequestServiceStub(self._channel("inference"))

    @cached_property
    def drift(self) -> drift_pb2_grpc.DriftServiceAsyncStub:
        """Whether what deployments are asked and answer is what they were trained on."""
        return drift_pb2_grpc.DriftServiceStub(self._channel("inference"))

    @cached_property
    def tuning(self) -> tuning_pb2_grpc.TuningServiceAsyncStub:
        """A deployment's batches and instances, by measurement."""
        return tuning_pb2_grpc.TuningServiceStub(self._channel("inference"))

    @property
    def kafka_bootstrap(self) -> str:
        """host:port of the broker."""
        return self.targets.address("kafka")

    @property
    def postgres_dsn(self) -> str:
        """The stack's PostgreSQL, where it is known: the embedded trace store lies there."""
        return self.targets.address("postgres")

    @property
    def logs_folder(self) -> Path | None:
        """Folder of the parts' log files; None where they are not on this machine."""
        return self.targets.logs

    async def produce(
        self,
        dataset: str,
        samples: Iterable[Sample],
        *,
        key: str | Callable[[Mapping[str, object]], str] = "",
        traceparent: str = "",
        schema_version: int = 0,
    ) -> int:
        """Publish samples to Kafka, and return their number once the broker has them all.

        They are validated when they are consumed: `ingestion.ListRejected` tells which were refused. A
        payload that is too large for Kafka is put into the object store, and its event claims it.
        `key` names the field whose value is the record's key, or makes the key of a sample; samples of
        one key keep their order. Where it is left out the dataset is asked. They carry `traceparent`,
        or else the current span's, or else that of a new trace. `schema_version`: the version of the
        dataset's schema by which they were written; 0: the newest when they are read.

        Raises InvalidArgument INVALID_SAMPLE or OVERSIZE_EVENT, Unavailable BROKER_UNAVAILABLE or
        STORE_UNAVAILABLE; samples before may have been published.
        """
        traceparent = traceparent or current_traceparent() or new_traceparent()
        make_key = key if callable(key) else _key_from(key or await self._key_field(dataset))
        count, size, batch = 0, 0, []
        for sample in samples:
            count += 1
            fields, data = _read_sample(sample, count)
            event = _json_event(SAMPLE_TYPE, dataset, data, traceparent, schema_version)
            batch.append((make_key(fields), event))
            size += len(data)
            if len(batch) == BATCH or size >= BATCH_BYTES:
                await self.publish_samples(batch)
                size, batch = 0, []
        await self.publish_samples(batch)
        return count

    async def publish_samples(self, keyed: Iterable[tuple[str, Event]]) -> None:
        """Publish samples with their keys, those that are too large as claim checks.

        Their payloads are in the object store before any of these events is sent. Raises InvalidArgument
        OVERSIZE_EVENT where no store is known, Unavailable STORE_UNAVAILABLE or BROKER_UNAVAILABLE.
        """
        from headrace.messaging import topics

        await self._publish_checked(topics.SAMPLES, keyed)

    async def replay_rejected(
        self, *, dataset: str = "", reason: str = ""
    ) -> AsyncIterator[ingestion_pb2.ReplayRejectedResponse]:
        """Send rejected events again: all that wait of a dataset, for a reason, or both, as it begins.

        Yields what each page of them came to. Single ones, corrected if need be: `ingestion.ReplayRejected`.
        """
        request = ingestion_pb2.ReplayRejectedRequest(
            filter=ingestion_pb2.RejectedFilter(dataset=dataset, reason=reason)
        )
        async for page in pages(self.ingestion.ReplayRejected, request):
            yield page

    async def discard_rejected(
        self, why: str, *, dataset: str = "", reason: str = ""
    ) -> AsyncIterator[ingestion_pb2.DiscardRejectedResponse]:
        """Mark rejected events as not wanted, which ones and in pages as `replay_rejected`."""
        request = ingestion_pb2.DiscardRejectedRequest(
            filter=ingestion_pb2.RejectedFilter(dataset=dataset, reason=reason), reason=why
        )
        async for page in pages(self.ingestion.DiscardRejected, request):
            yield page

    async def publish(self, topic: str, keyed: Iterable[tuple[str, Event]]) -> None:
        """Publish events with their keys, and return when the broker has them all.

        Raises Unavailable BROKER_UNAVAILABLE, InvalidArgument OVERSIZE_EVENT.
        """
        producer = await self._sample_producer()
        await _published(producer.publish_all(topic, keyed), self.kafka_bootstrap)

    async def cluster_id(self) -> str:
        """Id of the broker's cluster; the embedded broker is another one after each start.

        Raises Unavailable BROKER_UNAVAILABLE.
        """
        from headrace.messaging.client import cluster_id

        return await _published(cluster_id(self.kafka_bootstrap), self.kafka_bootstrap)

    async def feed_back(self, deployment: str, labels: Mapping[str, SupportsFloat | str]) -> int:
        """Publish true labels, by prediction id; return their number once the broker has them.

        A label is text or a finite number, also one of numpy's. Raises InvalidArgument INVALID_FEEDBACK.
        """
        from headrace.messaging import topics

        events = []
        for prediction_id, label in labels.items():
            known = {"text": label} if isinstance(label, str) else {"number": _number(prediction_id, label)}
            content = {"deployment": deployment, "prediction_id": prediction_id, **known}
            events.append(
                (
                    prediction_id,
                    _json_event(
                        FEEDBACK_TYPE, deployment, json.dumps(content).encode(), current_traceparent()
                    ),
                )
            )
        await self.publish(topics.FEEDBACK, events)
        return len(events)

    async def submit_feedback(
        self, deployment: str, labels: Mapping[str, SupportsFloat | str], *, time: datetime | None = None
    ) -> int:
        """Store true labels, by prediction id, without Kafka; of how many the prediction is in the log.

        The others wait for theirs. Labels are as for `feed_back`, and known since `time`, else now: of a
        prediction's labels the newest stands. Up to a thousand at once are stored together, or none of them.
        Raises InvalidArgument INVALID_FEEDBACK, NotFound DEPLOYMENT_NOT_FOUND.
        """
        known = to_timestamp(time or datetime.now(UTC))
        messages = [
            inference_pb2.TrueLabel(prediction_id=prediction_id, text=label, time=known)
            if isinstance(label, str)
            else inference_pb2.TrueLabel(
                prediction_id=prediction_id, number=_number(prediction_id, label), time=known
            )
            for prediction_id, label in labels.items()
        ]
        return await self.submit_labels(deployment, messages)

    async def submit_labels(self, deployment: str, labels: Sequence[inference_pb2.TrueLabel]) -> int:
        """The same of labels that say their own times."""
        joined = 0
        for first in range(0, len(labels), LABELS_AT_ONCE):
            request = inference_pb2.SubmitFeedbackRequest(
                deployment=deployment, labels=labels[first : first + LABELS_AT_ONCE]
            )
            joined += (await self.inference.SubmitFeedback(request)).joined_count
        return joined

    async def predict(
        self,
        deployment: str,
        features: Sequence[Row] | NDArray[np.floating[Any]],
        *,
        version: str = "",
        prediction_id: str = "",
        subject: str = "",
        segment: str = "",
    ) -> Prediction:
        """Ask a deployment about rows of raw features, in the order of its dataset's schema.

        A missing number is None or NaN, a missing text None or empty. An empty `version` leaves the choice to
        the rollout. `subject` says whose data the rows are, by the dataset's key: `headrace dataset erase`
        then reaches what is logged of them. `segment` says what kind of request it is, such as "ward=3", in
        at most 64 bytes: `headrace quality` shows how good answers are in each. Raises NotFound for an
        unknown deployment or version, InvalidArgument for rows that are not the model's, or INVALID_SEGMENT.
        """
        return await self._protocol.infer(
            deployment,
            features,
            version=version,
            prediction_id=prediction_id or str(uuid.uuid4()),
            subject=subject,
            segment=segment,
        )

    async def explain(
        self,
        deployment: str,
        features: Sequence[Row] = (),
        *,
        prediction: str = "",
        version: int = 0,
        method: ExplanationMethod | None = None,
        baseline: Baseline = "training",
        answer_class: str = "",
        max_evaluations: int = 0,
        patches: int = 0,
        timeout: float = EXPLAIN_SECONDS,
    ) -> inference_pb2.Explanation:
        """Ask which of their features moved the answers to rows, or to a `prediction` in the log, by its id.

        The proto says what each argument means; 0, empty and None leave it to the service. Raises NotFound
        for an unknown deployment, version or prediction, InvalidArgument for rows that are not the model's,
        ResourceExhausted while too many wait, DeadlineExceeded where nothing was found in `timeout` seconds.
        """
        from headrace.client.explaining import explain_request

        request = explain_request(
            deployment,
            features,
            prediction=prediction,
            version=version,
            method=method,
            baseline=baseline,
            answer_class=answer_class,
            max_evaluations=max_evaluations,
            patches=patches,
        )
        return await self.inference.Explain(request, timeout=timeout)

    async def submit(
        self,
        deployment: str,
        features: Sequence[Row] | NDArray[np.floating[Any]],
        *,
        request_id: str = "",
        source: str = SOURCE,
        version: str = "",
        subject: str = "",
        segment: str = "",
        priority: Priority = "normal",
        deadline: timedelta | None = None,
        retries: int | None = None,
        order: str = "",
    ) -> SubmittedRequest:
        """Ask a deployment over Kafka; returns once the broker has the request, which is not lost then.

            request = await client.submit("breast-cancer", rows, deadline=timedelta(seconds=30))
            prediction = await request.answer()

        Rows, `version`, `subject` and `segment` are as for `predict`. `source` with `request_id` is what
        makes a request the same: submitted again, it gets the answer that is stored. `deadline` is how long
        it may take; `retries` bounds how often a failing model is asked again, and by `priority` requests
        wait for one that is busy. Requests of one `order` are answered in the order in which they were
        submitted.

        Raises InvalidArgument INVALID_FEATURES, INVALID_SEGMENT, INVALID_NAME or OVERSIZE_EVENT,
        NotFound TOPIC_NOT_FOUND, Unavailable BROKER_UNAVAILABLE or STORE_UNAVAILABLE. What is wrong for the
        model its answer tells.
        """
        return await self._requests.submit(
            deployment,
            features,
            request_id=request_id,
            source=source,
            version=version,
            subject=subject,
            segment=segment,
            priority=priority,
            deadline=deadline,
            retries=retries,
            order=order,
        )

    def answers(self, group: str, *, topic: str = "") -> AsyncIterator[Answer]:
        """Read the answers to all requests over Kafka, from wherever the group has come to.

            async for answer in client.answers("my-billing"):
                store(answer.request_id, answer.result())

        Programs of one group share them. One that ends before it asks for the next answer gets the last
        one again: recognise it by its `id`. `topic`: another one that requests named as their `replyto`.

        Raises Unavailable BROKER_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        from headrace.messaging import topics

        return self._requests.answers(group, topic or topics.INFERENCE_RESPONSES)

    @cached_property
    def _requests(self) -> Requests:
        from headrace.client.requesting import Requests
        from headrace.messaging import topics

        async def publish(key: str, event: Event) -> None:
            await self._publish_checked(topics.INFERENCE_REQUESTS, [(key, event)])

        return Requests(self.kafka_bootstrap, self._open, publish, self._stored_claims)

    @cached_property
    def _protocol(self) -> InferenceProtocol:
        from headrace.client.inference_protocol import InferenceProtocol

        return InferenceProtocol(self._channel("inference_protocol"))

    def _channel(self, part: str) -> grpc.aio.Channel:
        opened = channel(self.targets.address(part))
        self._open.push_async_callback(opened.close)
        return opened

    async def _publish_checked(self, topic: str, keyed: Iterable[tuple[str, Event]]) -> None:
        """Publish events, those that are too large as claim checks."""
        pairs = list(keyed)
        largest = max((len(event.data) for _, event in pairs), default=0)
        if largest > self._inline_bytes:
            pairs = await self._claim_checks(largest).checked(pairs, above=self._inline_bytes)
        await self.publish(topic, pairs)

    def _stored_claims(self) -> StoredClaims:
        from headrace.objects import ObjectStore
        from headrace.objects.claims import StoredClaims

        return StoredClaims(ObjectStore.from_uri(self.targets.address("store")), seconds=STORE_SECONDS)

    def _claim_checks(self, largest: int) -> ClaimChecks:
        from headrace.client.claim_checks import ClaimChecks
        from headrace.objects import ObjectStore

        if self._claims is None:
            uri = self.targets.addresses.get("store", "")
            if not uri:
                raise InvalidArgument(
                    "OVERSIZE_EVENT",
                    f"a payload has {largest} bytes, and {self._inline_bytes} is the most without the "
                    f"stack's object store: name that by {VARIABLES['store']}",
                )
            self._claims = ClaimChecks(ObjectStore.from_uri(uri))
        return self._claims

    async def _key_field(self, dataset: str) -> str:
        found = await self.ingestion.GetDataset(ingestion_pb2.GetDatasetRequest(name=dataset))
        return found.schema.key

    async def _sample_producer(self) -> Producer:
        from headrace.messaging.producer import Producer

        async with self._producer_lock:
            if self._producer is None:
                opening = Producer(
                    self.kafka_bootstrap,
                    client_id="headrace-client",
                    idempotence=self.targets.kafka_idempotence,
                )
                self._producer = await _published(
                    self._open.enter_async_context(opening), self.kafka_bootstrap
                )
        return self._producer


T = TypeVar("T")


async def _published(work: Awaitable[T], bootstrap: str) -> T:
    """Await work with the broker, its errors as ours."""
    from aiokafka.errors import KafkaError, MessageSizeTooLargeError

    try:
        async with asyncio.timeout(PUBLISH_SECONDS):
            return await work
    except TimeoutError as error:
        raise Unavailable(
            "BROKER_UNAVAILABLE",
            f"the broker at {bootstrap} did not take it within {PUBLISH_SECONDS:g} s; it may still do so",
        ) from error
    except MessageSizeTooLargeError as error:
        raise InvalidArgument(
            "OVERSIZE_EVENT", f"an event is larger than the broker takes: {error}"
        ) from error
    except KafkaError as error:
        raise Unavailable(
            "BROKER_UNAVAILABLE", f"the broker at {bootstrap} did not take it: {error}"
        ) from error


def _number(prediction_id: str, label: SupportsFloat) -> float:
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidArgument(
            "INVALID_FEEDBACK", f"the label of {prediction_id} must be text or a finite number, not {label!r}"
        )
    return number


def _read_sample(sample: Sample, number: int) -> tuple[Mapping[str, object], bytes]:
    """Return a sample's fields and its JSON. `number` counts from 1, for the error."""
    if isinstance(sample, Mapping):
        try:
            return sample, json.dumps(sample, allow_nan=False, default=_as_json).encode()
        except (TypeError, ValueError) as error:
            raise InvalidArgument("INVALID_SAMPLE", f"sample {number} is not JSON: {error}") from error
    data = sample.encode() if isinstance(sample, str) else sample
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise InvalidArgument("INVALID_SAMPLE", f"sample {number} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidArgument("INVALID_SAMPLE", f"sample {number} is not a JSON object")
    return fields, data


def _as_json(value: object) -> object:
    """A tensor's bytes in base64, and a number of numpy. Raises TypeError."""
    import numpy as np

    if isinstance(value, np.ndarray):
        value = value.astype(value.dtype.newbyteorder("<")).tobytes()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is neither JSON nor a tensor's bytes")


def _key_from(field: str) -> Callable[[Mapping[str, object]], str]:
    # A sample without its key is published too: ingestion rejects it with the reason.
    return lambda fields: str(fields.get(field, ""))


def _json_event(kind: str, subject: str, data: bytes, traceparent: str, schema_version: int = 0) -> Event:
    from headrace.messaging.dataschema import ATTRIBUTE, dataschema
    from headrace.messaging.events import JSON, Event

    return Event(
        id=str(uuid.uuid4()),
        source=SOURCE,
        type=kind,
        subject=subject,
        time=datetime.now(UTC),
        data=data,
        content_type=JSON,
        traceparent=traceparent,
        extensions={ATTRIBUTE: dataschema(subject, schema_version)} if schema_version else {},
    )
