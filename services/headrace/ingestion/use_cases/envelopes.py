"""From records to samples: the CloudEvents attributes of whole batches, by column.

What the records of one producer have in common is read and judged once, by
`headrace.messaging.events.decode`, the authority, which also reads each record that is unlike others (see
`headrace.messaging.attributes`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa

from headrace.ingestion.domain.framing import UNFRAMED, schema_ids
from headrace.ingestion.domain.rejection import Reason, Verdict
from headrace.ingestion.use_cases.ports import Place, SchemaName
from headrace.messaging.attributes import Attributes
from headrace.messaging.claims import REFERENCE, Claim, claim_of
from headrace.messaging.dataschema import schema_version
from headrace.messaging.events import Event, InvalidCloudEvent, decode, is_structured, media_type
from headrace.messaging.record_batch import Record
from headrace.messaging.record_columns import Records
from headrace.native import Bools, Int64s, Spans

SAMPLE_TYPE: Final = "headrace.ingestion.sample.v1"
JSON_TYPE: Final = "application/json"
PROTOBUF_TYPE: Final = "application/protobuf"
AVRO_TYPE: Final = "application/avro"
# What else producers call them: IANA's name, that of Avro's own protocol over HTTP, and older ones.
_MEDIA_TYPES: Final = {
    "application/vnd.apache.avro": AVRO_TYPE,
    "avro/binary": AVRO_TYPE,
    "application/x-protobuf": PROTOBUF_TYPE,
    "application/vnd.google.protobuf": PROTOBUF_TYPE,
}
TIME_TYPE: Final = pa.timestamp("us", "UTC")
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Events of one dataset, media type and schema version, by column: each has one item for each event."""

    dataset: str
    media_type: str
    indexes: Int64s
    """Which of the batch's records they are."""
    payloads: Spans
    ids: pa.StringArray
    sources: pa.StringArray
    times: pa.TimestampArray
    traceparents: pa.StringArray
    """Null where there is none."""
    schema_version: int | None = None
    """By which they say to be written; None: they do not say."""

    def __len__(self) -> int:
        return len(self.indexes)

    def take(self, positions: Int64s) -> Samples:
        """The events at these positions."""
        chosen = pa.array(positions)
        return Samples(
            self.dataset,
            self.media_type,
            self.indexes[positions],
            self.payloads.take(positions),
            self.ids.take(chosen),
            self.sources.take(chosen),
            self.times.take(chosen),
            self.traceparents.take(chosen),
            self.schema_version,
        )


def _as_it_came(record: Record) -> Record:
    return record


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event whose payload lies in the object store. `index`: which of the batch's records it is."""

    index: int
    event: Event
    claim: Claim


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """A batch after its envelopes were read: samples, and what is none, by the record's index.

    `claimed`: samples without their payloads, in the records' order (see `fetch_claims`).
    """

    records: Records
    samples: Sequence[Samples]
    refused: Sequence[tuple[int, Verdict]]
    enveloped: Callable[[Record], Record] = _as_it_came
    """A record as it is kept where it is rejected."""
    claimed: Sequence[Claimed] = ()

    def record(self, index: int) -> Record:
        """One of the records, as it is kept where it is rejected."""
        return self.enveloped(self.records.record(index))

    def __len__(self) -> int:
        """Events that are to be judged or refused; claimed ones are not yet."""
        return sum(map(len, self.samples)) + len(self.refused)

    def halves(self) -> tuple[Opened, Opened]:
        """The first half of these events, and the rest."""
        refused = np.array([index for index, _ in self.refused], np.int64)
        indexes = np.sort(np.concatenate([refused, *(samples.indexes for samples in self.samples)]))
        middle = int(indexes[len(indexes) // 2])
        return self._within(0, middle), self._within(middle, len(self.records))

    def _within(self, start: int, end: int) -> Opened:
        samples = [
            some.take(np.flatnonzero((some.indexes >= start) & (some.indexes < end))) for some in self.samples
        ]
        return replace(
            self,
            samples=[some for some in samples if len(some)],
            refused=[(index, verdict) for index, verdict in self.refused if start <= index < end],
        )

    def datasets(self) -> Collection[str]:
        """The datasets that the samples name."""
        return {samples.dataset for samples in self.samples} | {one.event.subject for one in self.claimed}

    def schema_versions(self) -> Collection[SchemaName]:
        """The versions of schemas by which samples say to be written."""
        return {
            (samples.dataset, samples.schema_version)
            for samples in self.samples
            if samples.schema_version is not None
        }

    def schema_ids(self) -> Collection[int]:
        """The ids of the schemas by which Avro and Protobuf payloads were written."""
        return {
            schema_id
            for samples in self.samples
            if samples.media_type in (AVRO_TYPE, PROTOBUF_TYPE)
            for schema_id in np.unique(schema_ids(samples.payloads)).tolist()
            if schema_id != UNFRAMED
        }


def open_envelopes(
    records: Records, attributes: Attributes, already_rejected: Mapping[Place, int], max_event_bytes: int
) -> Opened:
    """Read the CloudEvents attributes of each record, except those at the places in `already_rejected`.

    An event that was rejected once stays rejected, even where a schema that was changed since would take
    it: whether it is a row or a rejection is decided once.
    """
    sizes = attributes.sizes + np.maximum(records.keys.lengths, 0) + np.maximum(records.values.lengths, 0)
    new = not_at(already_rejected, records)
    alike = new & attributes.plain & (attributes.ids.lengths > 0) & (sizes <= max_event_bytes)
    samples: list[Samples] = []
    refused: list[tuple[int, Verdict]] = []
    for indexes in _by_shape(attributes, np.flatnonzero(alike)):
        first = records.record(int(indexes[0]))
        if is_structured(first.headers):
            # Their attributes are in their payloads, and a `ce_id` among the headers says nothing.
            alike[indexes] = False
            continue
        kind = _judged(first, max_event_bytes)
        if isinstance(kind, Event) and REFERENCE in kind.extensions:
            # Those without a payload claim one.
            alike[indexes] = False
            continue
        if isinstance(kind, Verdict):
            refused += [(int(index), kind) for index in indexes]
        else:
            samples.append(_samples(kind, indexes, records, attributes))
    others = _Others()
    claimed: list[Claimed] = []
    for index in np.flatnonzero(new & ~alike):
        record = records.record(int(index))
        event = _judged(record, max_event_bytes)
        if isinstance(event, Verdict):
            refused.append((int(index), event))
            continue
        claim = _claim_of(event)
        if isinstance(claim, Verdict):
            refused.append((int(index), claim))
        elif claim is not None:
            claimed.append(Claimed(int(index), event, claim))
        else:
            others.add(int(index), event)
    return Opened(records, [*samples, *others.samples()], refused, claimed=claimed)


def event_size(record: Record) -> int:
    """Bytes of key, payload and headers together."""
    return len(record.key or b"") + len(record.value or b"") + header_bytes(record.headers)


def header_bytes(headers: Collection[tuple[str, bytes]]) -> int:
    """Bytes of headers, names included."""
    return sum(len(name.encode()) + len(value or b"") for name, value in headers)


def oversize(size: int, max_event_bytes: int) -> Verdict:
    """The verdict on an event that is too large."""
    message = f"the event has {size} bytes, and {max_event_bytes} is the most"
    return Verdict(Reason.OVERSIZE_EVENT, message, rule="max_event_bytes")


def not_at(places: Mapping[Place, int], records: Records) -> Bools:
    """Off for the records from these places on, of the records' topic, that are before the offsets there."""
    new = np.ones(len(records), np.bool_)
    by_partition: defaultdict[int, list[int]] = defaultdict(list)
    for (_, partition, offset), end in places.items():
        if end == offset + 1:
            by_partition[partition].append(offset)
        else:
            within = (records.offsets >= offset) & (records.offsets < end)
            new &= (records.partitions != partition) | ~within
    for partition, offsets in by_partition.items():
        new &= (records.partitions != partition) | ~np.isin(records.offsets, offsets)
    return new


def _by_shape(attributes: Attributes, indexes: Int64s) -> Iterator[Int64s]:
    """The indexes, apart where their records' shapes differ."""
    shapes = attributes.shapes[indexes]
    if not len(shapes) or (shapes == shapes[0]).all():
        if len(shapes):
            yield indexes
        return
    _, shape_of = np.unique(shapes, axis=0, return_inverse=True)
    order = np.argsort(shape_of.reshape(-1), kind="stable")
    ends = np.flatnonzero(np.diff(shape_of.reshape(-1)[order])) + 1
    yield from np.split(indexes[order], ends)


def _samples(event: Event, indexes: Int64s, records: Records, attributes: Attributes) -> Samples:
    """Samples whose shape is that of one that was read."""
    traceparents = attributes.traceparents.take(indexes)
    # An empty one is none.
    present = Spans(
        traceparents.buffer, traceparents.starts, np.where(traceparents.lengths, traceparents.lengths, -1)
    )
    return Samples(
        event.subject,
        _media_type(event),
        indexes,
        records.values.take(indexes),
        attributes.ids.take(indexes).to_arrow(),
        pa.repeat(event.source, len(indexes)),
        pa.array(attributes.times[indexes]).cast(pa.timestamp("us")).cast(TIME_TYPE),
        present.to_arrow(),
        schema_version(event),
    )


def samples_of(found: Sequence[tuple[int, Event]], payloads: Spans) -> Samples:
    """Events alike (see `Samples`), by their records' indexes, and what each of them carries."""
    _, first = found[0]
    return Samples(
        first.subject,
        _media_type(first),
        np.array([index for index, _ in found], np.int64),
        payloads,
        pa.array([event.id for _, event in found], pa.string()),
        pa.array([event.source for _, event in found], pa.string()),
        pa.array([event.time for _, event in found], TIME_TYPE),
        pa.array([event.traceparent or None for _, event in found], pa.string()),
        schema_version(first),
    )


@dataclass(slots=True)
class _Others:
    """Events that were read one by one."""

    events: defaultdict[tuple[str, str, int | None], list[tuple[int, Event]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, index: int, event: Event) -> None:
        kind = (event.subject, _media_type(event), schema_version(event))
        self.events[kind].append((index, event))

    def samples(self) -> Iterator[Samples]:
        for found in self.events.values():
            yield samples_of(found, Spans.of(event.data for _, event in found))


def _judged(record: Record, max_event_bytes: int) -> Event | Verdict:
    """The event, or why it is no sample's."""
    size = event_size(record)
    if size > max_event_bytes:
        return oversize(size, max_event_bytes)
    try:
        event = decode(record.headers, record.value, received=_received(record))
        _expect_sample(event)
    except InvalidCloudEvent as error:
        return Verdict(Reason.INVALID_CLOUDEVENT, str(error), field=error.attribute)
    return event


def _claim_of(event: Event) -> Claim | Verdict | None:
    try:
        return claim_of(event)
    except InvalidCloudEvent as error:
        return Verdict(Reason.INVALID_CLOUDEVENT, str(error), field=error.attribute)


def _expect_sample(event: Event) -> None:
    if event.type != SAMPLE_TYPE:
        raise InvalidCloudEvent("ce_type", f'is "{event.type}"; this topic takes "{SAMPLE_TYPE}"')
    if not event.subject:
        raise InvalidCloudEvent("ce_subject", "is missing; it names the sample's dataset")
    if _media_type(event) not in (JSON_TYPE, PROTOBUF_TYPE, AVRO_TYPE):
        raise InvalidCloudEvent(
            "content-type",
            f'is "{event.content_type}"; send {JSON_TYPE}, {PROTOBUF_TYPE} or {AVRO_TYPE}',
        )


def _media_type(event: Event) -> str:
    content_type = event.content_type
    if content_type == JSON_TYPE or not content_type:
        return JSON_TYPE
    found = media_type(content_type)
    return _MEDIA_TYPES.get(found, found)


def _received(record: Record) -> datetime:
    try:
        return datetime.fromtimestamp(record.timestamp / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        # A producer may set any 64 bits as a record's time.
        return _EPOCH
