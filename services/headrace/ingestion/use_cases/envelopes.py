"""From records to samples: the CloudEvents attributes of whole batches, by column.

Records of one producer differ in id, time and trace, and in nothing else. What they have in common is read
and judged once, by `headrace.messaging.events.decode`, the authority; a record whose other attributes are the
same as those of one before it needs no second look at them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from headrace.ingestion.domain.rejection import Reason, Verdict
from headrace.ingestion.use_cases.ports import Place, Record
from headrace.messaging.events import Event, InvalidCloudEvent, decode, parse_time

SAMPLE_TYPE: Final = "headrace.ingestion.sample.v1"
JSON_TYPE: Final = "application/json"
PROTOBUF_TYPE: Final = "application/protobuf"
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class Samples:
    """Events of one dataset and media type, by column: all lists have one item for each event."""

    dataset: str
    media_type: str
    records: list[Record] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    times: list[datetime] = field(default_factory=list)
    traceparents: list[str | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    def payloads(self) -> list[bytes]:
        """What the events carry."""
        return [record.value or b"" for record in self.records]

    def take(self, indexes: Sequence[int]) -> Samples:
        """The events at these indexes."""
        return Samples(
            self.dataset,
            self.media_type,
            [self.records[index] for index in indexes],
            [self.ids[index] for index in indexes],
            [self.times[index] for index in indexes],
            [self.traceparents[index] for index in indexes],
        )

    def add(self, record: Record, event_id: str, time: datetime, traceparent: str) -> None:
        """Append an event."""
        self.records.append(record)
        self.ids.append(event_id)
        self.times.append(time)
        self.traceparents.append(traceparent or None)


@dataclass(frozen=True, slots=True)
class Opened:
    """A batch after its envelopes were read: samples, and what is none."""

    samples: Sequence[Samples]
    refused: Sequence[tuple[Record, Verdict]]

    def datasets(self) -> Collection[str]:
        """The datasets that the samples name."""
        return {samples.dataset for samples in self.samples}


def open_envelopes(
    records: Sequence[Record], already_rejected: Collection[Place], max_event_bytes: int
) -> Opened:
    """Read the CloudEvents attributes of each record, except those at the places in `already_rejected`.

    An event that was rejected once stays rejected, even where a schema that was changed since would take
    it: whether it is a row or a rejection is decided once.
    """
    opener = _Opener(max_event_bytes)
    for record in records:
        if already_rejected and (record.topic, record.partition, record.offset) in already_rejected:
            continue
        if not opener.open_like_another(record):
            opener.open(record)
    return Opened(list(opener.samples.values()), opener.refused)


def event_size(record: Record) -> int:
    """Bytes of key, payload and headers together."""
    return len(record.key or b"") + len(record.value or b"") + header_bytes(record.headers)


def header_bytes(headers: Collection[tuple[str, bytes]]) -> int:
    """Bytes of headers, names included."""
    return sum(len(name) + len(value or b"") for name, value in headers)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Attributes that records share: what they are, their bytes, and where such records belong."""

    attributes: Mapping[str, bytes]
    size: int
    samples: Samples


class _Opener:
    """What was opened of a batch so far."""

    def __init__(self, max_event_bytes: int) -> None:
        self.samples: dict[tuple[str, str], Samples] = {}
        self.refused: list[tuple[Record, Verdict]] = []
        self._max_event_bytes = max_event_bytes
        # By the dataset's name, as it stands in the header: the last shape seen.
        self._shapes: dict[bytes | None, _Shape] = {}

    def open_like_another(self, record: Record) -> bool:
        """Take the record where its attributes are known and what is its own is sound; else say False."""
        attributes = dict(record.headers)
        if len(attributes) != len(record.headers):
            return False
        event_id = attributes.pop("ce_id", None)
        time = attributes.pop("ce_time", None)
        traceparent = attributes.pop("traceparent", b"")
        tracestate = attributes.pop("tracestate", b"")
        shape = self._shapes.get(attributes.get("ce_subject"))
        if shape is None or not event_id or attributes != shape.attributes:
            return False
        # With the names of all four: an event that may be a few bytes too large is looked at again.
        size = shape.size + _VARYING_BYTES + len(event_id) + len(time or b"")
        size += len(traceparent or b"") + len(tracestate or b"")
        if size + len(record.key or b"") + len(record.value or b"") > self._max_event_bytes:
            return False
        try:
            if tracestate:
                tracestate.decode()
            shape.samples.add(
                record,
                event_id.decode(),
                parse_time(time.decode()) if time else _received(record),
                traceparent.decode() if traceparent else "",
            )
        except (UnicodeDecodeError, InvalidCloudEvent):
            return False
        return True

    def open(self, record: Record) -> None:
        """Take the record, or refuse it and say why."""
        size = event_size(record)
        if size > self._max_event_bytes:
            message = f"the event has {size} bytes, and {self._max_event_bytes} is the most"
            self.refused.append((record, Verdict(Reason.OVERSIZE_EVENT, message, rule="max_event_bytes")))
            return
        try:
            event = decode(record.headers, record.value, received=_received(record))
            _expect_sample(event)
        except InvalidCloudEvent as error:
            verdict = Verdict(Reason.INVALID_CLOUDEVENT, str(error), field=error.attribute)
            self.refused.append((record, verdict))
            return
        kind = event.subject, _media_type(event)
        samples = self.samples.get(kind)
        if samples is None:
            samples = self.samples[kind] = Samples(*kind)
        samples.add(record, event.id, event.time, event.traceparent)
        self._remember(record, samples)

    def _remember(self, record: Record, samples: Samples) -> None:
        shared = {name: value for name, value in record.headers if name not in _VARYING}
        # Names in capitals, or twice, are left to `decode`.
        if all(name == name.lower() for name, _ in record.headers):
            self._shapes[shared.get("ce_subject")] = _Shape(shared, header_bytes(shared.items()), samples)


_VARYING: Final = ("ce_id", "ce_time", "traceparent", "tracestate")
_VARYING_BYTES: Final = sum(map(len, _VARYING))


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


def _received(record: Record) -> datetime:
    try:
        return datetime.fromtimestamp(record.timestamp / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        # A producer may set any 64 bits as a record's time.
        return _EPOCH
