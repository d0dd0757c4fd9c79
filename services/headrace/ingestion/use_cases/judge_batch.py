"""From records to rows and rejections: every record ends as exactly one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa
from google.protobuf.message import DecodeError

from headrace.events.ingestion.v1.events_pb2 import Sample
from headrace.ingestion.domain.columnar import ColumnReader, Columns, Malformed
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.rejection import Reason, Rejection, Verdict, verdict_of
from headrace.ingestion.domain.source import SOURCE_COLUMNS
from headrace.ingestion.use_cases.ports import Place, Record, Span
from headrace.messaging.events import Event, InvalidCloudEvent, decode

SAMPLE_TYPE: Final = "headrace.ingestion.sample.v1"
JSON_TYPE: Final = "application/json"
PROTOBUF_TYPE: Final = "application/protobuf"
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
# Characters that a rejection keeps of what its event wrote into attributes, and of a sentence about it.
_WORD: Final = 256
_SENTENCE: Final = 1024


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of several partitions of one cluster, and the spans of offsets that they come from."""

    cluster: str
    records: Sequence[Record]
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Opened:
    """A batch after its envelopes were read: events by dataset name, and what is no event."""

    events: Mapping[str, Sequence[tuple[Record, Event]]]
    refused: Sequence[tuple[Record, Verdict]]


@dataclass(slots=True)
class Judged:
    """What a batch became: rows by dataset name, and rejections."""

    rows: dict[str, pa.Table] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)


def open_envelopes(
    records: Sequence[Record], already_rejected: Collection[Place], max_event_bytes: int
) -> Opened:
    """Read the CloudEvents attributes of each record, except those at the places in `already_rejected`.

    An event that was rejected once stays rejected, even where a schema that was changed since would take
    it: whether it is a row or a rejection is decided once.
    """
    events: defaultdict[str, list[tuple[Record, Event]]] = defaultdict(list)
    refused: list[tuple[Record, Verdict]] = []
    for record in records:
        if already_rejected and (record.topic, record.partition, record.offset) in already_rejected:
            continue
        size = event_size(record)
        if size > max_event_bytes:
            message = f"the event has {size} bytes, and {max_event_bytes} is the most"
            refused.append((record, Verdict(Reason.OVERSIZE_EVENT, message, rule="max_event_bytes")))
            continue
        try:
            event = decode(record.headers, record.value, received=_received(record))
            _expect_sample(event)
        except InvalidCloudEvent as error:
            verdict = Verdict(Reason.INVALID_CLOUDEVENT, str(error), field=error.attribute)
            refused.append((record, verdict))
            continue
        events[event.subject].append((record, event))
    return Opened(events, refused)


def event_size(record: Record) -> int:
    """Bytes of key, payload and headers together."""
    headers = sum(len(name) + len(value or b"") for name, value in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


def _expect_sample(event: Event) -> None:
    if event.type != SAMPLE_TYPE:
        raise InvalidCloudEvent("ce_type", f'is "{event.type}"; this topic takes "{SAMPLE_TYPE}"')
    if not event.subject:
        raise InvalidCloudEvent("ce_subject", "is missing; it names the sample's dataset")
    if _media_type(event) not in (JSON_TYPE, PROTOBUF_TYPE):
        raise InvalidCloudEvent(
            "content-type",
            f'is "{event.content_type}"; send {JSON_TYPE} or {PROTOBUF_TYPE}',
        )


def _media_type(event: Event) -> str:
    content_type = event.content_type
    if content_type == JSON_TYPE or not content_type:
        return JSON_TYPE
    return content_type.partition(";")[0].strip().lower()


class Judge:
    """Judges opened batches. Pure computation, to be called in a thread."""

    def __init__(self) -> None:
        # Prepared once for each schema, not for each batch.
        self._readers: dict[tuple[str, int], ColumnReader] = {}

    def judge(self, cluster: str, opened: Opened, datasets: Mapping[str, Dataset]) -> Judged:
        """Turn every event into a row or a rejection."""
        judged = Judged(
            rejections=[_rejection(cluster, record, verdict) for record, verdict in opened.refused]
        )
        for name, events in opened.events.items():
            dataset = datasets.get(name)
            if dataset is None:
                verdict = Verdict(
                    Reason.UNKNOWN_DATASET,
                    f'there is no dataset "{name[:80]}"; apply its pipeline first, or correct ce_subject',
                )
                judged.rejections += [_rejection(cluster, record, verdict, event) for record, event in events]
            else:
                self._judge_dataset(cluster, dataset, events, judged)
        return judged

    def _judge_dataset(
        self, cluster: str, dataset: Dataset, events: Sequence[tuple[Record, Event]], judged: Judged
    ) -> None:
        reader = self._reader(dataset)
        as_json = [pair for pair in events if _media_type(pair[1]) == JSON_TYPE]
        tables = []
        if as_json:
            columns = reader.read_json([event.data for _, event in as_json])
            tables.append(_collect(cluster, as_json, columns, judged))
        if len(as_json) < len(events):
            as_protobuf = [pair for pair in events if _media_type(pair[1]) != JSON_TYPE]
            parsed = []
            samples = []
            for pair in as_protobuf:
                sample = parse_sample(pair[1].data)
                if isinstance(sample, Malformed):
                    judged.rejections.append(_rejection(cluster, pair[0], verdict_of(sample), pair[1]))
                else:
                    parsed.append(pair)
                    samples.append(sample)
            tables.append(_collect(cluster, parsed, reader.read_samples(samples), judged))
        rows = pa.concat_tables(tables)
        if rows.num_rows:
            judged.rows[dataset.name] = rows

    def _reader(self, dataset: Dataset) -> ColumnReader:
        key = (dataset.name, dataset.schema_version)
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = ColumnReader(dataset.schema)
        return reader


def parse_sample(data: bytes) -> dict[str, object] | Malformed:
    """A Protobuf Sample as a plain mapping; an unset value is None."""
    try:
        sample = Sample.FromString(data)
    except DecodeError as error:
        return Malformed("protobuf", f"the payload is no headrace.events.ingestion.v1.Sample: {error}")
    values: dict[str, object] = {}
    for name, value in sample.fields.items():
        kind = value.WhichOneof("kind")
        values[name] = getattr(value, kind) if kind else None
    return values


def _collect(
    cluster: str, events: Sequence[tuple[Record, Event]], columns: Columns, judged: Judged
) -> pa.Table:
    """The accepted rows with the columns that say where they came from; faults become rejections."""
    for index, fault in columns.faults:
        record, event = events[index]
        judged.rejections.append(_rejection(cluster, record, verdict_of(fault), event))
    accepted = [events[index] for index in columns.accepted]
    sources = pa.table(
        [
            pa.array([event.id for _, event in accepted], pa.string()),
            pa.array([event.time for _, event in accepted], pa.timestamp("us", "UTC")),
            pa.array([record.topic for record, _ in accepted], pa.string()),
            pa.array([record.partition for record, _ in accepted], pa.int32()),
            pa.array([record.offset for record, _ in accepted], pa.int64()),
            pa.array([event.traceparent or None for _, event in accepted], pa.string()),
        ],
        schema=SOURCE_COLUMNS,
    )
    table = columns.table
    for position, name in enumerate(SOURCE_COLUMNS.names):
        table = table.append_column(SOURCE_COLUMNS.field(position), sources.column(name))
    return table


def _received(record: Record) -> datetime:
    try:
        return datetime.fromtimestamp(record.timestamp / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        # A producer may set any 64 bits as a record's time.
        return _EPOCH


def _rejection(cluster: str, record: Record, verdict: Verdict, event: Event | None = None) -> Rejection:
    headers = [(name, value or b"") for name, value in record.headers]
    attributes = dict(headers)

    def text(name: str) -> str:
        return attributes.get(name, b"").decode(errors="replace")

    # Anybody may have written these, and some are in an index, which holds no longer ones. The headers
    # and the payload keep the whole.
    return Rejection(
        cluster=cluster,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        verdict=replace(
            verdict, message=_at_most(_SENTENCE, verdict.message), field=_at_most(_WORD, verdict.field)
        ),
        dataset=_at_most(_WORD, event.subject if event else text("ce_subject")),
        event_id=_at_most(_WORD, event.id if event else text("ce_id")),
        traceparent=_at_most(_WORD, event.traceparent if event else text("traceparent")),
        key=record.key or b"",
        payload=record.value or b"",
        headers=headers,
    )


def _at_most(characters: int, text: str) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
