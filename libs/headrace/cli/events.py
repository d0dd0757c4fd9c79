"""Reading topics: every event decoded by its topic's file, whoever wrote it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.errors import KafkaConnectionError
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as _protocol  # noqa: F401

from headrace.api.inference.v1 import inference_pb2 as _inference_api  # noqa: F401 - registers its messages
from headrace.cli.output import Column, field
from headrace.cli.plain import Plain, plain
from headrace.errors import InvalidArgument, Unavailable
from headrace.events.inference.v1 import events_pb2 as _inference  # noqa: F401
from headrace.events.ingestion.v1 import events_pb2 as _ingestion  # noqa: F401
from headrace.events.registry.v1 import events_pb2 as _registry  # noqa: F401
from headrace.events.scheduling.v1 import events_pb2 as _scheduling  # noqa: F401
from headrace.events.training.v1 import events_pb2 as _training  # noqa: F401
from headrace.messaging.topics import load_topics

Row = dict[str, Plain]

COLUMNS = (
    field("topic", "topic"),
    field("at", "position"),
    field("time", "time"),
    field("type", "type"),
    field("subject", "subject"),
    field("key", "key"),
    Column("data", lambda row: _shortened(row["data"])),
)

# How long topics must be silent before they count as read to their end. The embedded broker's end offsets are
# those of the last batch's first record, so they cannot be used.
SILENCE_SECONDS = 1.0
# The same before anything has come: the first answer of a broker takes longer than the next ones.
FIRST_SILENCE_SECONDS = 5.0

# Event types whose payload is another message than their topic's one.
PAYLOADS = {
    "headrace.registry.model-version-registered.v1": "headrace.events.registry.v1.ModelVersionRegistered",
    "headrace.registry.model-version-promoted.v1": "headrace.events.registry.v1.ModelVersionPromoted",
    "headrace.registry.model-version-refused.v1": "headrace.events.registry.v1.ModelVersionRefused",
    "headrace.registry.alias-changed.v1": "headrace.events.registry.v1.AliasChanged",
    "headrace.registry.model-changed.v1": "headrace.events.registry.v1.ModelChanged",
    "headrace.ingestion.dataset-version-committed.v1": "headrace.events.ingestion.v1.DatasetVersionCommitted",
    "headrace.ingestion.sample-rejected.v1": "headrace.events.ingestion.v1.SampleRejected",
    "headrace.ingestion.reject-share-exceeded.v1": "headrace.events.ingestion.v1.RejectShareExceeded",
    "headrace.ingestion.subject-erased.v1": "headrace.events.ingestion.v1.SubjectErased",
    "headrace.ingestion.reject-share-recovered.v1": "headrace.events.ingestion.v1.RejectShareRecovered",
    "headrace.ingestion.sample.v1": "headrace.events.ingestion.v1.Sample",
    "headrace.scheduling.job-changed.v1": "headrace.events.scheduling.v1.JobChanged",
    "headrace.training.run-changed.v1": "headrace.events.training.v1.RunChanged",
    "headrace.inference.deployment-changed.v1": "headrace.events.inference.v1.DeploymentChanged",
    "headrace.inference.drift-detected.v1": "headrace.events.inference.v1.DriftDetected",
    "headrace.inference.drift-ended.v1": "headrace.events.inference.v1.DriftEnded",
    "headrace.inference.feedback.v1": "headrace.events.inference.v1.Feedback",
    "headrace.inference.request-failed.v1": "headrace.events.inference.v1.RequestFailed",
    "headrace.inference.request.v1": "inference.ModelInferRequest",
    "headrace.inference.response.v1": "inference.ModelInferResponse",
}


def topics_named(name: str) -> list[str]:
    """Topics whose name contains `name`; all where it is empty. Raises InvalidArgument where none does."""
    known = sorted(load_topics())
    matching = [topic for topic in known if name in topic]
    if not matching:
        raise InvalidArgument("UNKNOWN_TOPIC", f"no topic is like {name!r}; there are: {', '.join(known)}")
    return matching


async def read(
    bootstrap: str, topics: Sequence[str], *, follow: bool, from_beginning: bool
) -> AsyncGenerator[Row, None]:
    """Events of the topics as they stand, then, with `follow`, as they come, until cancelled.

    As they stand: what was published, by its timestamp, before this began; a busy topic has no other end.
    """
    began_ms = time.time() * 1000
    consumer = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=bootstrap,
        auto_offset_reset="earliest" if from_beginning else "latest",
        enable_auto_commit=False,
    )
    try:
        try:
            await consumer.start()
        except KafkaConnectionError as error:
            raise Unavailable("BROKER_UNAVAILABLE", f"the broker at {bootstrap} does not answer") from error
        silent_since, patience = time.monotonic(), FIRST_SILENCE_SECONDS
        while follow or time.monotonic() - silent_since < patience:
            batches = await consumer.getmany(timeout_ms=200)
            records = [record for batch in batches.values() for record in batch]
            wanted = [record for record in records if follow or record.timestamp <= began_ms]
            for record in wanted:
                yield decoded(record)
            # What came later does not renew the silence, but it is an answer.
            if wanted or (records and patience == FIRST_SILENCE_SECONDS):
                silent_since, patience = time.monotonic(), SILENCE_SECONDS
    finally:
        await asyncio.shield(consumer.stop())


async def find(bootstrap: str, event_id: str) -> Row | None:
    """The event of that `ce_id`, in any topic."""
    async with aclosing(read(bootstrap, topics_named(""), follow=False, from_beginning=True)) as events:
        async for row in events:
            if row["id"] == event_id:
                return row
    return None


def decoded(record: ConsumerRecord[bytes, bytes]) -> Row:
    """A record as a row; a payload that cannot be decoded is shown as text, and says so."""
    headers = {name: value.decode(errors="replace") for name, value in record.headers}
    return {
        "topic": record.topic,
        "position": f"{record.partition}/{record.offset}",
        "key": (record.key or b"").decode(errors="replace"),
        "id": headers.get("ce_id", ""),
        "type": headers.get("ce_type", ""),
        "source": headers.get("ce_source", ""),
        "subject": headers.get("ce_subject", ""),
        "time": headers.get("ce_time", ""),
        "traceparent": headers.get("traceparent", ""),
        "data": _data(record.value or b"", headers),
    }


def _data(value: bytes, headers: Mapping[str, str]) -> Plain:
    if not value and "ce_dataref" in headers:
        # A claim check: its payload lies there.
        return headers["ce_dataref"]
    if headers.get("content-type", "").startswith("application/json"):
        try:
            document: Plain = orjson.loads(value)
        except ValueError:
            return value.decode(errors="replace")
        return document
    name = PAYLOADS.get(headers.get("ce_type", ""))
    if name is None:
        return value.decode(errors="replace")
    descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    try:
        return plain(message_factory.GetMessageClass(descriptor).FromString(value))
    except DecodeError:
        return value.decode(errors="replace")


def _shortened(data: Plain, width: int = 60) -> str:
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return text if len(text) <= width else text[: width - 1] + "…"
