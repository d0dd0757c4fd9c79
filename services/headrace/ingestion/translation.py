"""Between the domain's types and the contract's messages."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.errors import FieldViolation, InvalidArgument
from headrace.ingestion.domain.content_hash import to_hex
from headrace.ingestion.domain.dataset import DatasetVersion
from headrace.ingestion.domain.evolution import SchemaVersion
from headrace.ingestion.domain.rejection import Rejection, State
from headrace.ingestion.domain.rejects import Rejects
from headrace.ingestion.domain.replay import Correction
from headrace.ingestion.domain.retention import Retention
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Role, Scalar, Schema, Treatment
from headrace.ingestion.quality_translation import finding_to_message, verdict_to_message
from headrace.ingestion.split_translation import split_counts_to_message
from headrace.ingestion.use_cases.ports import RejectedRow
from headrace.ingestion.use_cases.validate_samples import Judgement, Unjudged
from headrace.rpc.convert import from_duration, to_duration, to_timestamp
from headrace.rpc.tensors import from_tensor_type, to_tensor_type

_TYPES: Final = {
    api.FIELD_TYPE_BOOL: FieldType.BOOL,
    api.FIELD_TYPE_INT8: FieldType.INT8,
    api.FIELD_TYPE_INT16: FieldType.INT16,
    api.FIELD_TYPE_INT32: FieldType.INT32,
    api.FIELD_TYPE_INT64: FieldType.INT64,
    api.FIELD_TYPE_FLOAT32: FieldType.FLOAT32,
    api.FIELD_TYPE_FLOAT64: FieldType.FLOAT64,
    api.FIELD_TYPE_STRING: FieldType.STRING,
    api.FIELD_TYPE_TIMESTAMP: FieldType.TIMESTAMP,
    api.FIELD_TYPE_TENSOR: FieldType.TENSOR,
}
_ROLES: Final = {
    api.FIELD_ROLE_UNSPECIFIED: None,
    api.FIELD_ROLE_PROTECTED: Role.PROTECTED,
    api.FIELD_ROLE_PERSONAL: Role.PERSONAL,
    api.FIELD_ROLE_IGNORED: Role.IGNORED,
    api.FIELD_ROLE_TIME: Role.TIME,
}
_TREATMENTS: Final = {
    api.FIELD_TREATMENT_UNSPECIFIED: None,
    api.FIELD_TREATMENT_DROP: Treatment.DROP,
    api.FIELD_TREATMENT_PSEUDONYMISE: Treatment.PSEUDONYMISE,
    api.FIELD_TREATMENT_ENCRYPT: Treatment.ENCRYPT,
}
_STATES: Final = {
    State.PENDING: api.REJECTED_STATE_PENDING,
    State.REPLAYED: api.REJECTED_STATE_REPLAYED,
    State.DISCARDED: api.REJECTED_STATE_DISCARDED,
}
_STATES_BY_NUMBER: Final = {number: state for state, number in _STATES.items()}
# Protobuf's own cost of a bytes field: its number, and its length in up to five bytes.
_FIELD_BYTES: Final = 6
_TYPE_NUMBERS: Final = {field_type: number for number, field_type in _TYPES.items()}
_TREATMENT_NUMBERS: Final = {treatment: number for number, treatment in _TREATMENTS.items()}
_ROLE_NUMBERS: Final = {role: number for number, role in _ROLES.items()}


def schema_from_message(message: api.Schema) -> Schema:
    """Raises InvalidArgument INVALID_SCHEMA where an allowed value or a default is no JSON value."""
    return Schema(
        key=message.key,
        features=tuple(
            _field_from_message(field, f"schema.features.{field.name}") for field in message.features
        ),
        label=_field_from_message(message.label, "schema.label"),
        attributes=tuple(
            _field_from_message(field, f"schema.attributes.{field.name}") for field in message.attributes
        ),
    )


def _field_from_message(message: api.Field, path: str) -> Field:
    return Field(
        name=message.name,
        type=_type_from_number(message.type, path),
        nullable=message.nullable,
        min=message.min if message.HasField("min") else None,
        max=message.max if message.HasField("max") else None,
        allowed_values=tuple(
            _scalar(text, f"{path}.allowed_values[{index}]")
            for index, text in enumerate(message.allowed_values)
        ),
        pattern=message.pattern,
        default=_scalar(message.default_value, f"{path}.default_value")
        if message.HasField("default_value")
        else None,
        unit=message.unit,
        description=message.description,
        role=_ROLES[message.role],
        tensor=from_tensor_type(message.tensor) if message.HasField("tensor") else None,
        treatment=_TREATMENTS[message.treatment],
    )


def _type_from_number(number: int, path: str) -> FieldType:
    field_type = _TYPES.get(number)  # type: ignore[call-overload]
    if field_type is None:
        raise _invalid_schema(f"{path}.type", "name a type")
    assert isinstance(field_type, FieldType)
    return field_type


def _scalar(text: str, path: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, bool | int | float | str):
        raise _invalid_schema(path, f"{text!r} is no JSON number, string or boolean")
    return value


def _invalid_schema(path: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        "INVALID_SCHEMA", f"{path}: {description}", fields=[FieldViolation(path, description)]
    )


def type_to_message(field_type: FieldType) -> api.FieldType.ValueType:
    """The same type in the contract's words."""
    return _TYPE_NUMBERS[field_type]


def schema_to_message(schema: Schema) -> api.Schema:
    """The same schema in the contract's words."""
    return api.Schema(
        key=schema.key,
        features=[_field_to_message(field) for field in schema.features],
        label=_field_to_message(schema.label),
        attributes=[_field_to_message(field) for field in schema.attributes],
    )


def schema_version_to_message(version: SchemaVersion) -> api.DatasetSchema:
    """The same version of a schema in the contract's words."""
    return api.DatasetSchema(
        version=version.version,
        schema=schema_to_message(version.schema),
        create_time=to_timestamp(version.create_time),
    )


def _field_to_message(field: Field) -> api.Field:
    return api.Field(
        name=field.name,
        type=_TYPE_NUMBERS[field.type],
        nullable=field.nullable,
        min=field.min,
        max=field.max,
        allowed_values=[json.dumps(value) for value in field.allowed_values],
        pattern=field.pattern,
        default_value=None if field.default is None else json.dumps(field.default),
        unit=field.unit,
        description=field.description,
        role=_ROLE_NUMBERS[field.role],
        tensor=to_tensor_type(field.tensor) if field.tensor else None,
        treatment=_TREATMENT_NUMBERS[field.treatment],
    )


def cut_from_message(message: api.Cut) -> Cut:
    """An absent message cuts nothing by itself."""
    return Cut(message.rows, message.seconds, message.schedule)


def cut_to_message(cut: Cut) -> api.Cut:
    """The inverse."""
    return api.Cut(rows=cut.rows, seconds=cut.seconds, schedule=cut.schedule)


def unjudged_from_message(message: api.ValidateSamplesRequest) -> Unjudged:
    """Raises InvalidArgument INVALID_SCHEMA where an allowed value or a default is no JSON value."""
    schema = schema_from_message(message.schema) if message.HasField("schema") else None
    return Unjudged(message.dataset, schema, message.json)


def judgement_to_message(judgement: Judgement) -> api.ValidateSamplesResponse:
    """The same judgement in the contract's words."""
    return api.ValidateSamplesResponse(
        valid_count=judgement.valid,
        faults=[
            api.SampleFault(
                index=index,
                reason=verdict.reason.value,
                field=verdict.field,
                rule=verdict.rule,
                message=verdict.message,
            )
            for index, verdict in judgement.faults
        ],
    )


def rejects_from_message(message: api.Rejects) -> Rejects:
    """What is unset has its default."""
    default = Rejects()
    return Rejects(
        alert_share=message.alert_share if message.HasField("alert_share") else default.alert_share,
        window=from_duration(message.window) if message.HasField("window") else default.window,
        hold_cut=message.hold_cut,
    )


def rejects_to_message(rejects: Rejects) -> api.Rejects:
    """The same in the contract's words."""
    return api.Rejects(
        alert_share=rejects.alert_share, window=to_duration(rejects.window), hold_cut=rejects.hold_cut
    )


def retention_from_message(message: api.Retention) -> Retention:
    """What is unset is kept for ever."""
    return Retention(
        rows=from_duration(message.rows) if message.HasField("rows") else None,
        versions=from_duration(message.versions) if message.HasField("versions") else None,
        rejected=from_duration(message.rejected) if message.HasField("rejected") else None,
    )


def retention_to_message(retention: Retention) -> api.Retention:
    """The same in the contract's words."""
    return api.Retention(
        rows=to_duration(retention.rows),
        versions=to_duration(retention.versions),
        rejected=to_duration(retention.rejected),
    )


def version_to_message(version: DatasetVersion, table_uri: str) -> api.DatasetVersion:
    """The same version in the contract's words."""
    return api.DatasetVersion(
        dataset=version.dataset,
        version=version.version,
        table_uri=table_uri,
        table_version=version.table_version,
        schema_version=version.schema_version,
        row_count=version.row_count,
        content_hash=to_hex(version.content_hash),
        sources=[
            api.SourceOffset(
                cluster=offset.source.cluster,
                topic=offset.source.topic,
                partition=offset.source.partition,
                next_offset=offset.next_offset,
            )
            for offset in version.sources
        ],
        create_time=to_timestamp(version.create_time),
        traceparent=version.traceparent,
        tags=version.tags,
        pinned=version.pinned,
        erased_rows=version.erased_rows,
        verdict=verdict_to_message(version.verdict),
        findings=map(finding_to_message, version.findings),
        split_counts=split_counts_to_message(version.split_counts) if version.split_counts else None,
        expire_time=to_timestamp(version.expire_time),
    )


def rejected_to_message(
    rejection: Rejection, reject_time: datetime, max_bytes: int | None = None
) -> api.RejectedSample:
    """The same rejection in the contract's words; see `write_rejected`."""
    message = api.RejectedSample()
    write_rejected(message, rejection, reject_time, max_bytes)
    return message


def write_rejected(
    message: api.RejectedSample, rejection: Rejection, reject_time: datetime, max_bytes: int | None = None
) -> None:
    """Write the rejection into a new message: in its place within another one, which saves a copy.

    With `max_bytes`, what goes beyond is cut off: the payload keeps its beginning, headers are kept whole
    or left out, and the message says so. The judgement itself always stands, in 16 KiB at most.
    """
    verdict = rejection.verdict
    message.topic = rejection.topic
    message.partition = rejection.partition
    message.offset = rejection.offset
    message.dataset = rejection.dataset
    message.event_id = rejection.event_id
    message.reason = verdict.reason.value
    message.field = verdict.field
    message.rule = verdict.rule
    message.message = verdict.message
    message.key = rejection.key
    message.payload = rejection.payload
    # As the envelope's reader does: of a header that is there twice, the last counts.
    message.headers.update(rejection.headers)
    message.reject_time.CopyFrom(_timestamp(reject_time))
    message.id = rejection.id
    message.state = api.REJECTED_STATE_PENDING
    message.replay_of = rejection.replay_of
    message.sealed_by = rejection.sealed_by
    message.next_offset = rejection.next_offset
    if max_bytes is not None and message.ByteSize() > max_bytes:
        _shorten(message, max_bytes)


@lru_cache(maxsize=64)
def _timestamp(time: datetime) -> Timestamp:
    # Events of one batch have one time.
    return to_timestamp(time)


def rejected_row_to_message(row: RejectedRow) -> api.RejectedSample:
    """The rejection as it is kept, whole, and what became of it."""
    message = rejected_to_message(row.rejection, row.reject_time)
    message.state = _STATES[row.state]
    if row.resolve_time is not None:
        message.resolve_time.FromDatetime(row.resolve_time)
    message.discard_reason = row.discard_reason
    return message


def state_from_number(number: api.RejectedState.ValueType) -> State | None:
    """None where it is unspecified."""
    return _STATES_BY_NUMBER.get(number)


def correction_from_message(message: api.Correction) -> Correction:
    """An absent message corrects nothing."""
    return Correction(message.payload if message.HasField("payload") else None, dict(message.attributes))


def _shorten(message: api.RejectedSample, max_bytes: int) -> None:
    """Cut off what goes beyond. Protobuf itself says how much is left: each header has a cost of its own."""
    key, payload = message.key, message.payload
    message.message += " (the original is longer; it stands whole in ListRejected)"
    message.payload = b""
    if message.ByteSize() > max_bytes:
        message.headers.clear()
    message.key = b""
    message.key = key[: _room(message, max_bytes)]
    if not message.sealed_by:
        # The beginning of what is encrypted is of no use.
        message.payload = payload[: _room(message, max_bytes)]


def _room(message: api.RejectedSample, max_bytes: int) -> int:
    return max(0, max_bytes - message.ByteSize() - _FIELD_BYTES)
