"""From samples to rows and rejections: every record ends as exactly one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from headrace.events.ingestion.v1.events_pb2 import Sample
from headrace.ingestion.domain.avro import AvroReader, UnusableSchema
from headrace.ingestion.domain.columnar import ColumnReader, Columns, Malformed
from headrace.ingestion.domain.conversion import Conversion
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.framing import UNFRAMED, schema_ids, unframed
from headrace.ingestion.domain.key_ring import NO_KEYS, KeyRing
from headrace.ingestion.domain.protobuf import ProtobufReader
from headrace.ingestion.domain.rejection import Reason, Rejection, Verdict, verdict_of
from headrace.ingestion.domain.schema import Schema
from headrace.ingestion.domain.source import SOURCE_COLUMNS
from headrace.ingestion.domain.source_topic import Feed
from headrace.ingestion.domain.treatment import Treatments
from headrace.ingestion.use_cases.envelopes import AVRO_TYPE, JSON_TYPE, PROTOBUF_TYPE, Opened, Samples
from headrace.ingestion.use_cases.ports import RegisteredSchema, SchemaName, Span
from headrace.messaging.attributes import Attributes
from headrace.messaging.dataschema import ATTRIBUTE
from headrace.messaging.record_batch import Record
from headrace.messaging.record_columns import Records

# Characters that a rejection keeps of what its event wrote into attributes, and of a sentence about it.
_WORD: Final = 256
_SENTENCE: Final = 1024
# Prepared ones; each has some kilobytes.
_WRITERS: Final = 1000
NO_SCHEMAS: Final[Mapping[SchemaName, Schema]] = MappingProxyType({})
# As a registry calls them.
_FORMATS: Final = {AVRO_TYPE: "AVRO", PROTOBUF_TYPE: "PROTOBUF"}


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Records of several partitions of one cluster, and the spans of offsets that they come from."""

    cluster: str
    records: Records
    attributes: Attributes
    spans: Sequence[Span]
    feed: Feed | None = None
    """Of a topic whose events are all samples of one dataset; None: of the samples topic."""

    @property
    def begin(self) -> tuple[str, str, int, int]:
        """Cluster, topic, partition and offset of its first record."""
        records = self.records
        return self.cluster, records.topic, int(records.partitions[0]), int(records.offsets[0])

    def split(self, index: int) -> tuple[Batch, Batch]:
        """The batch before a record, and from it on.

        The records of a partition stand together, at rising offsets.
        """
        before, behind = [], []
        for span in self.spans:
            places = np.flatnonzero(self.records.partitions == span.source.partition)
            rest = places[places >= index]
            if not len(rest):
                before.append(span)
            elif len(rest) == len(places):
                behind.append(span)
            else:
                offset = int(self.records.offsets[rest[0]])
                before.append(replace(span, end=offset))
                behind.append(replace(span, start=offset))
        end = len(self.records)
        return self._part(0, index, before), self._part(index, end, behind)

    def _part(self, start: int, end: int, spans: Sequence[Span]) -> Batch:
        records, attributes = self.records.part(start, end), self.attributes.part(start, end)
        return replace(self, records=records, attributes=attributes, spans=spans)


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """How events of a dataset are read that were written by one version of its schema."""

    schema: Schema
    reader: ColumnReader
    conversion: Conversion | None = None
    """Into rows of the newest version; None: it is this one."""

    def rows(self, columns: Columns) -> Columns:
        """What was read, as it is stored."""
        if self.conversion is None:
            return columns
        return replace(columns, table=self.conversion.apply(columns.table))


@dataclass(slots=True)
class Judged:
    """What a batch became: rows by dataset name, and rejections."""

    rows: dict[str, pa.Table] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)


class Judge:
    """Judges opened batches. Pure computation, to be called in a thread."""

    def __init__(self, keys: KeyRing = NO_KEYS) -> None:
        """`keys`: what personal fields are covered with."""
        self._keys = keys
        # Prepared once for each schema, not for each batch.
        self._forms: dict[tuple[str, int, int], _Form] = {}
        self._treatments: dict[tuple[str, int], Treatments] = {}
        self._writer = lru_cache(maxsize=_WRITERS)(writer_of)

    def judge(
        self,
        cluster: str,
        opened: Opened,
        datasets: Mapping[str, Dataset],
        schemas: Mapping[int, RegisteredSchema] | None = None,
        earlier: Mapping[SchemaName, Schema] = NO_SCHEMAS,
    ) -> Judged:
        """Turn every event into a row, its personal fields treated, or a rejection with all that it has.

        `schemas` are those of `opened.schema_ids()` that the registry knows; None: there is no registry.
        `earlier`: those of `opened.schema_versions()` that are known.
        Raises FailedPrecondition PRIVACY_KEY_MISSING: nothing is stored in clear because there is no key.
        """
        judged = Judged(
            rejections=[
                _rejection(cluster, opened.record(index), verdict) for index, verdict in opened.refused
            ]
        )
        # Those of one dataset in all formats are one commit.
        tables: defaultdict[str, list[pa.Table]] = defaultdict(list)
        for samples in opened.samples:
            dataset = datasets.get(samples.dataset)
            if dataset is None:
                verdict = Verdict(
                    Reason.UNKNOWN_DATASET,
                    f'there is no dataset "{samples.dataset[:80]}"; '
                    "apply its pipeline first, or correct ce_subject",
                )
                judged.rejections += [
                    _rejection_of(cluster, opened, samples, index, verdict) for index in range(len(samples))
                ]
            elif (form := self._form(dataset, samples.schema_version, earlier)) is None:
                verdict = _unknown_version(dataset)
                judged.rejections += [
                    _rejection_of(cluster, opened, samples, index, verdict) for index in range(len(samples))
                ]
            else:
                framed, others = _by_frame(samples)
                tables[dataset.name] += self._judge_framed(
                    cluster, dataset, form, opened, framed, schemas, judged
                )
                columns = form.rows(
                    form.reader.read_json(others.payloads)
                    if samples.media_type == JSON_TYPE
                    else form.reader.read_protobuf(others.payloads, parse_sample)
                )
                tables[dataset.name].append(_collect(cluster, dataset, opened, others, columns, judged))
        for name, parts in tables.items():
            if any(part.num_rows for part in parts):
                judged.rows[name] = self._treated(datasets[name], pa.concat_tables(parts))
        return judged

    def _judge_framed(
        self,
        cluster: str,
        dataset: Dataset,
        form: _Form,
        opened: Opened,
        samples: Samples,
        schemas: Mapping[int, RegisteredSchema] | None,
        judged: Judged,
    ) -> Sequence[pa.Table]:
        """A table for each schema by which some of them were written."""
        ids = schema_ids(samples.payloads)
        known = np.isin(ids, list(schemas or ()))
        for index in map(int, np.flatnonzero(~known)):
            verdict = _unknown(int(ids[index]), has_registry=schemas is not None)
            judged.rejections.append(_rejection_of(cluster, opened, samples, index, verdict))
        tables = []
        for schema_id in np.unique(ids[known]).tolist():
            some = samples.take(np.flatnonzero(ids == schema_id))
            assert schemas is not None
            writer = self._writer(schemas[schema_id], form.schema, _FORMATS[samples.media_type])
            if isinstance(writer, UnusableSchema):
                verdict = _unusable(schema_id, writer)
                judged.rejections += [
                    _rejection_of(cluster, opened, some, index, verdict) for index in range(len(some))
                ]
            else:
                columns = form.rows(form.reader.read_framed(unframed(some.payloads), writer))
                tables.append(_collect(cluster, dataset, opened, some, columns, judged))
        return tables

    def _treated(self, dataset: Dataset, rows: pa.Table) -> pa.Table:
        if not dataset.schema.personal:
            return rows
        key = (dataset.name, dataset.schema_version)
        treatments = self._treatments.get(key)
        if treatments is None:
            treatments = self._treatments[key] = Treatments(dataset.name, dataset.schema, self._keys)
        return treatments.apply(rows)

    def _form(
        self, dataset: Dataset, version: int | None, earlier: Mapping[SchemaName, Schema]
    ) -> _Form | None:
        """How events by a version of the dataset's schema are read; None where it has no such version."""
        newest = dataset.schema_version
        version = newest if version is None else version
        key = (dataset.name, version, newest)
        form = self._forms.get(key)
        if form is None:
            if version == newest:
                form = _Form(dataset.schema, ColumnReader(dataset.schema))
            else:
                # One that was applied since the dataset was read is none yet.
                schema = earlier.get((dataset.name, version)) if version < newest else None
                if schema is None:
                    return None
                reader = ColumnReader(schema, quotes=not dataset.schema.personal)
                form = _Form(schema, reader, Conversion(schema, dataset.schema))
            self._forms[key] = form
        return form


def _unknown_version(dataset: Dataset) -> Verdict:
    message = (
        f"{dataset.name} knows no schema of that version, and its newest is {dataset.schema_version}; "
        "correct ce_dataschema, or apply that schema, and replay the event"
    )
    return Verdict(Reason.SCHEMA_UNKNOWN, message, field=f"ce_{ATTRIBUTE}", rule="version")


def writer_of(
    registered: RegisteredSchema, schema: Schema, said: str
) -> AvroReader | ProtobufReader | UnusableSchema:
    """What reads a writer's records of a dataset, or why nothing does. `said`: the format by the event."""
    if registered.format != said:
        return UnusableSchema(
            said.lower(), f"is one of {registered.format}, and the event says that it is {said.title()}"
        )
    if registered.unusable is not None:
        return registered.unusable
    try:
        return (
            ProtobufReader(registered.descriptors, schema)
            if registered.format == "PROTOBUF"
            else AvroReader(registered.definition, schema, registered.references)
        )
    except UnusableSchema as error:
        return error


def _by_frame(samples: Samples) -> tuple[Samples, Samples]:
    """Those whose schema a registry has, and others: no JSON and no Sample begins with a zero byte."""
    if samples.media_type == JSON_TYPE:
        return samples.take(np.empty(0, np.int64)), samples
    framed = (schema_ids(samples.payloads) != UNFRAMED) | (samples.media_type == AVRO_TYPE)
    return samples.take(np.flatnonzero(framed)), samples.take(np.flatnonzero(~framed))


def _unknown(schema_id: int, *, has_registry: bool) -> Verdict:
    if schema_id == UNFRAMED:
        message = (
            "an Avro payload begins with a zero byte and its schema's id in four bytes; this one does not"
        )
        return Verdict(Reason.MALFORMED_PAYLOAD, message, rule="framing")
    if not has_registry:
        message = (
            "the payload names a schema in a registry, and none is set: "
            "HEADRACE_INGESTION_SCHEMA_REGISTRY_URL"
        )
        return Verdict(Reason.SCHEMA_UNKNOWN, message, rule="registry")
    message = f"the schema registry knows no schema {schema_id}; register it there, and replay the event"
    return Verdict(Reason.SCHEMA_UNKNOWN, message, rule="schema_id")


def _unusable(schema_id: int, error: UnusableSchema) -> Verdict:
    return Verdict(Reason.SCHEMA_UNUSABLE, f"schema {schema_id} {error.message}", rule=error.rule)


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
    cluster: str, dataset: Dataset, opened: Opened, samples: Samples, columns: Columns, judged: Judged
) -> pa.Table:
    """The accepted rows with the columns that say where they came from; faults become rejections."""
    for index, fault in columns.faults:
        judged.rejections.append(_rejection_of(cluster, opened, samples, index, verdict_of(fault)))
    accepted = samples if len(columns.accepted) == len(samples) else samples.take(columns.accepted)
    table, records = columns.table, opened.records
    time = dataset.schema.time
    sources = [
        accepted.ids,
        accepted.sources,
        accepted.times if time is None else pc.coalesce(table.column(time.name), accepted.times),
        pa.repeat(cluster, len(accepted)),
        pa.repeat(records.topic, len(accepted)),
        pa.array(records.partitions[accepted.indexes]),
        pa.array(records.offsets[accepted.indexes]),
        accepted.traceparents,
    ]
    for source, column in zip(SOURCE_COLUMNS, sources, strict=True):
        table = table.append_column(source, column)
    return table


def _rejection_of(cluster: str, opened: Opened, samples: Samples, index: int, verdict: Verdict) -> Rejection:
    """A rejected sample, by what was read of its envelope."""
    return _rejection_as(
        cluster,
        opened.record(int(samples.indexes[index])),
        verdict,
        dataset=samples.dataset,
        event_id=samples.ids[index].as_py(),
        traceparent=samples.traceparents[index].as_py() or "",
    )


def rejected_alone(cluster: str, opened: Opened, verdict: Verdict) -> Rejection:
    """The one event of these, rejected for something that is not its own."""
    if opened.refused:
        [(index, _)] = opened.refused
        return _rejection(cluster, opened.record(index), verdict)
    [samples] = opened.samples
    return _rejection_of(cluster, opened, samples, 0, verdict)


def _rejection(cluster: str, record: Record, verdict: Verdict) -> Rejection:
    """A rejected record, by what its headers say."""
    attributes = dict(record.headers)

    def text(name: str) -> str:
        return attributes.get(name, b"").decode(errors="replace")

    return _rejection_as(
        cluster,
        record,
        verdict,
        dataset=text("ce_subject"),
        event_id=text("ce_id"),
        traceparent=text("traceparent"),
    )


def _rejection_as(
    cluster: str, record: Record, verdict: Verdict, *, dataset: str, event_id: str, traceparent: str
) -> Rejection:
    # Anybody may have written these, and some are in an index, which holds no longer ones. The headers
    # and the payload keep the whole.
    return Rejection(
        cluster=cluster,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        verdict=Verdict(
            verdict.reason,
            _at_most(_SENTENCE, verdict.message),
            _at_most(_WORD, verdict.field),
            verdict.rule,
        ),
        dataset=_at_most(_WORD, dataset),
        event_id=_at_most(_WORD, event_id),
        traceparent=_at_most(_WORD, traceparent),
        key=record.key or b"",
        payload=record.value or b"",
        headers=record.headers,
    )


def _at_most(characters: int, text: str) -> str:
    """The text's beginning, as everybody can write it: JSON's escapes can make half a character."""
    sound = text if text.isascii() else text.encode(errors="replace").decode()
    return sound if len(sound) <= characters else sound[: characters - 1] + "…"
