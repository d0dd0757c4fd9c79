"""Datasets that predictions go to, by the ingestion service (`use_cases.table_ports.LogTables`)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import ingestion_pb2_grpc
from headrace.errors import Aborted, FailedPrecondition, FieldViolation, NotFound
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.log_table import (
    ANSWER_COLUMN,
    KEY,
    PREDICTION_ID,
    Column,
    Kind,
    columns_of,
    fitting,
)
from headrace.inference.use_cases.table_ports import LogTables
from headrace.rpc.client import channel

_ATTEMPTS: Final = 5
# What each row says of its prediction, beside key and answer.
_ATTRIBUTES: Final = (
    (PREDICTION_ID, api.FIELD_TYPE_STRING, "the request's id"),
    ("deployment", api.FIELD_TYPE_STRING, "the deployment that was asked"),
    ("model", api.FIELD_TYPE_STRING, "its model"),
    ("model_version", api.FIELD_TYPE_INT64, "the version that answered"),
    ("row", api.FIELD_TYPE_INT64, "the row's place in its request"),
    ("trace_id", api.FIELD_TYPE_STRING, "of the caller's W3C trace context"),
    ("segment", api.FIELD_TYPE_STRING, "the kind of request, as its caller says"),
    ("shadow", api.FIELD_TYPE_BOOL, "nobody got this answer: it was asked for to be compared"),
)
_SECONDS: Final = api.Field(
    name="seconds",
    type=api.FIELD_TYPE_FLOAT64,
    nullable=True,
    unit="s",
    description="time in the model, batching included",
    role=api.FIELD_ROLE_IGNORED,
)
_TYPES: Final = {Kind.NUMBER: api.FIELD_TYPE_FLOAT64, Kind.TEXT: api.FIELD_TYPE_STRING}
_NO_FIELDS: Final[Mapping[str, api.Field]] = {}


class NoLogTables:
    """Of an installation without an ingestion service."""

    async def check(self, dataset: str) -> None:
        """Raises FailedPrecondition."""
        raise FailedPrecondition(
            "INGESTION_NOT_NAMED",
            f"predictions cannot become rows of {dataset}: HEADRACE_INFERENCE_INGESTION_TARGET names no "
            "ingestion service",
        )

    async def columns(self, dataset: str, version: ServedVersion) -> Sequence[Column]:
        """Raises FailedPrecondition."""
        await self.check(dataset)
        return ()


class GrpcLogTables:
    """Asks the ingestion service, and declares there what is missing."""

    def __init__(self, stub: ingestion_pb2_grpc.IngestionServiceAsyncStub) -> None:
        self._stub = stub

    async def check(self, dataset: str) -> None:
        """Raises FailedPrecondition LOG_DATASET_TAKEN, HeadraceError."""
        await self._known(dataset)

    async def columns(self, dataset: str, version: ServedVersion) -> Sequence[Column]:
        """Have the dataset take the version's predictions; the columns that may be sent."""
        trained_on = await self._trained_on(version)
        for _ in range(_ATTEMPTS):
            known = await self._known(dataset)
            fields = _NO_FIELDS if known is None else fields_of(known.schema)
            columns = fitting(columns_of(version), {name: _kind(field) for name, field in fields.items()})
            schema = schema_with(None if known is None else known.schema, columns, trained_on)
            if known is None or schema != known.schema:
                try:
                    await self._stub.ApplyDataset(_request(dataset, known, schema))
                except (FailedPrecondition, Aborted) as error:
                    if error.reason not in ("INCOMPATIBLE_SCHEMA", "DATASET_CONFLICT", "COMMIT_CONFLICT"):
                        raise
                    # Somebody else has changed it meanwhile: another instance, for another version.
                    continue
            now = fields_of(schema)
            return [
                column
                for column in columns
                if not _is_personal(trained_on.get(column.field)) or _is_personal(now[column.name])
            ]
        raise Aborted("DATASET_CONFLICT", f"{dataset} is being changed by others; try again")

    async def _known(self, dataset: str) -> api.Dataset | None:
        try:
            found = await self._stub.GetDataset(api.GetDatasetRequest(name=dataset))
        except NotFound:
            return None
        if not _is_log(found.schema):
            message = f"dataset {dataset} holds something else; name one that there is not"
            raise FailedPrecondition(
                "LOG_DATASET_TAKEN", message, fields=[FieldViolation("log.dataset", message)]
            )
        return found

    async def _trained_on(self, version: ServedVersion) -> Mapping[str, api.Field]:
        """The fields of the data that a version was trained on; none where that is not known."""
        if not version.dataset:
            return _NO_FIELDS
        # Where it is named and gone, nobody knows what was personal.
        found = await self._stub.GetDataset(api.GetDatasetRequest(name=version.dataset))
        return fields_of(found.schema)


def schema_with(
    known: api.Schema | None, columns: Sequence[Column], trained_on: Mapping[str, api.Field]
) -> api.Schema:
    """A schema that takes these columns beside those that it has; each may be null.

    No rule of the training data bounds them: a row says what was asked, be it as it should or not. What is
    personal there is treated here as it is there.
    """
    schema = api.Schema()
    if known is None:
        schema.key = KEY
        answer = next((column for column in columns if column.name == ANSWER_COLUMN), None)
        kind = _TYPES[Kind.NUMBER if answer is None else answer.kind]
        schema.label.CopyFrom(api.Field(name=ANSWER_COLUMN, type=kind, nullable=True))
    else:
        schema.CopyFrom(known)
    there = fields_of(schema)
    # Also those that an earlier release did not have.
    schema.attributes.extend(
        api.Field(name=name, type=of_type, nullable=True, description=said, role=api.FIELD_ROLE_IGNORED)
        for name, of_type, said in _ATTRIBUTES
        if name not in there
    )
    for column in columns:
        if column.name in there:
            continue
        was = trained_on.get(column.field, api.Field())
        field = api.Field(
            name=column.name,
            type=_TYPES[column.kind],
            nullable=True,
            unit=was.unit,
            description=was.description,
        )
        if _is_personal(was):
            field.role, field.treatment = was.role, was.treatment
            schema.attributes.append(field)
        elif column.is_answer:
            field.role = api.FIELD_ROLE_IGNORED
            schema.attributes.append(field)
        else:
            if was.role == api.FIELD_ROLE_PROTECTED:
                field.role = was.role
            schema.features.append(field)
    if _SECONDS.name not in there:
        if schema.features:
            schema.attributes.append(_SECONDS)
        else:
            # A dataset has one at least, and images are no columns.
            seconds = schema.features.add()
            seconds.CopyFrom(_SECONDS)
            seconds.ClearField("role")
    return schema


def fields_of(schema: api.Schema) -> dict[str, api.Field]:
    """Features, attributes and label by name."""
    return {field.name: field for field in (*schema.features, *schema.attributes, schema.label)}


def _is_log(schema: api.Schema) -> bool:
    attributes = {field.name for field in schema.attributes}
    return schema.key == KEY and schema.label.name == ANSWER_COLUMN and PREDICTION_ID in attributes


def _is_personal(field: api.Field | None) -> bool:
    return field is not None and field.role == api.FIELD_ROLE_PERSONAL


def _kind(field: api.Field) -> Kind:
    return Kind.TEXT if field.type == api.FIELD_TYPE_STRING else Kind.NUMBER


def _request(dataset: str, known: api.Dataset | None, schema: api.Schema) -> api.ApplyDatasetRequest:
    """What its owner has said of it stays."""
    request = api.ApplyDatasetRequest(name=dataset, schema=schema)
    if known is not None:
        for name in ("cut", "rejects", "split", "retention", "source"):
            if known.HasField(name):
                getattr(request, name).CopyFrom(getattr(known, name))
        request.quality.extend(known.quality)
    return request


@asynccontextmanager
async def log_tables(target: str) -> AsyncIterator[LogTables]:
    """Those of the service at host:port, empty for none; it is connected to when it is first asked."""
    if not target:
        yield NoLogTables()
        return
    async with channel(target) as opened:
        yield GrpcLogTables(ingestion_pb2_grpc.IngestionServiceStub(opened))
