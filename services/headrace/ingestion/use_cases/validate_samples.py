"""Judging samples without storing them, by the code that judges events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.columnar import ColumnReader
from headrace.ingestion.domain.rejection import Verdict, verdict_of
from headrace.ingestion.domain.schema import Schema, check_schema
from headrace.ingestion.use_cases.cut_versions import require_dataset
from headrace.ingestion.use_cases.ports import Catalogue
from headrace.native import Spans


@dataclass(frozen=True, slots=True)
class Unjudged:
    """Samples as JSON, and what they are judged by: a schema, or else that of a dataset ("": none said)."""

    dataset: str
    schema: Schema | None
    payloads: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How many of the samples are valid, and by index what is wrong with the others."""

    valid: int
    faults: Sequence[tuple[int, Verdict]]


class ValidateSamples:
    """The use case."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def __call__(self, groups: AsyncIterator[Unjudged]) -> AsyncIterator[Judgement]:
        """Judge group by group, all by what the first one says.

        Raises NotFound DATASET_NOT_FOUND, InvalidArgument INVALID_SCHEMA or SCHEMA_MISSING.
        """
        reader: ColumnReader | None = None
        async for group in groups:
            if reader is None:
                reader = ColumnReader(await self._schema(group))
            columns = await asyncio.to_thread(reader.read_json, Spans.of(group.payloads))
            faults = [
                (index, verdict_of(fault)) for index, fault in sorted(columns.faults, key=itemgetter(0))
            ]
            yield Judgement(len(columns.accepted), faults)

    async def _schema(self, first: Unjudged) -> Schema:
        if first.schema is not None:
            check_schema(first.schema)
            return first.schema
        if not first.dataset:
            raise InvalidArgument("SCHEMA_MISSING", "name a dataset or a schema in the first request")
        return (await require_dataset(self._catalogue, first.dataset)).schema
