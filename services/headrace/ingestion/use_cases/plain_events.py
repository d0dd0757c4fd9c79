"""Events of a dataset's own topic: they have no envelope, and their places and times stand in for it.

The event's id is where it stands, its source the topic, its time Kafka's, and its dataset and format are what
the dataset says of the topic. Headers say nothing but the trace: what else stands there has its own meaning
to those who wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headrace.ingestion.domain.source_topic import Feed, SourceFormat, place_id
from headrace.ingestion.use_cases.envelopes import (
    AVRO_TYPE,
    JSON_TYPE,
    PROTOBUF_TYPE,
    SAMPLE_TYPE,
    TIME_TYPE,
    Opened,
    Samples,
    not_at,
    oversize,
)
from headrace.ingestion.use_cases.ports import Place
from headrace.messaging.attributes import Attributes, sent_times
from headrace.messaging.events import Event, encode
from headrace.messaging.record_batch import Record
from headrace.messaging.record_columns import Records
from headrace.native import Int64s, Spans

_MEDIA_TYPES: Final = {
    SourceFormat.JSON: JSON_TYPE,
    SourceFormat.AVRO: AVRO_TYPE,
    SourceFormat.PROTOBUF: PROTOBUF_TYPE,
}
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True, slots=True)
class PlainEvents:
    """How the records of a topic, in one cluster, are a dataset's samples."""

    cluster: str
    feed: Feed

    def open(
        self,
        records: Records,
        attributes: Attributes,
        already_rejected: Mapping[Place, int],
        max_event_bytes: int,
    ) -> Opened:
        """Each record that is not too large as a sample, but those at the places in `already_rejected`."""
        sizes = attributes.sizes + np.maximum(records.keys.lengths, 0) + np.maximum(records.values.lengths, 0)
        new = not_at(already_rejected, records)
        fits = sizes <= max_event_bytes
        taken = np.flatnonzero(new & fits)
        return Opened(
            records,
            [self._samples(taken, records, attributes)] if len(taken) else [],
            [
                (int(index), oversize(int(sizes[index]), max_event_bytes))
                for index in np.flatnonzero(new & ~fits)
            ],
            self.enveloped,
        )

    def enveloped(self, record: Record) -> Record:
        """The record as the event that it was read as, to be kept and sent again.

        What it lacked stands behind its own headers: of several of one name the last one counts.
        """
        micros = int(sent_times(np.array([record.timestamp], np.int64))[0])
        event = Event(
            id=place_id(self.cluster, record.topic, record.partition, record.offset),
            source=record.topic,
            type=SAMPLE_TYPE,
            subject=self.feed.dataset,
            time=_EPOCH + timedelta(microseconds=micros),
            data=b"",
            content_type=self._media_type,
        )
        return replace(record, headers=[*record.headers, *encode(event)[0]])

    @property
    def _media_type(self) -> str:
        return _MEDIA_TYPES[self.feed.source.format]

    def _samples(self, indexes: Int64s, records: Records, attributes: Attributes) -> Samples:
        traceparents = attributes.traceparents.take(indexes)
        # Of one that stands there twice, or is no text, nobody can tell.
        sound = attributes.plain[indexes] & (traceparents.lengths > 0)
        return Samples(
            self.feed.dataset,
            self._media_type,
            indexes,
            records.values.take(indexes),
            pc.binary_join_element_wise(
                f"{self.cluster}/{records.topic}",
                pa.array(records.partitions[indexes]).cast(pa.string()),
                pa.array(records.offsets[indexes]).cast(pa.string()),
                "/",
            ),
            pa.repeat(records.topic, len(indexes)),
            pa.array(sent_times(records.timestamps[indexes])).cast(pa.timestamp("us")).cast(TIME_TYPE),
            Spans(
                traceparents.buffer, traceparents.starts, np.where(sound, traceparents.lengths, -1)
            ).to_arrow(),
        )
