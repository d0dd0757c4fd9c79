"""Files judged by ingestion itself, with nothing stored."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.ingestion.v1 import ingestion_pb2_grpc as ingestion_grpc
from headrace.client.data_files import Row

REQUEST_ROWS: Final = 1000
REQUEST_BYTES: Final = 1 << 20
SHOWN_ROWS: Final = 10


@dataclass(slots=True)
class Fault:
    """One rule that rows break: how many, the first of them, and a sentence about the very first."""

    field: str
    rule: str
    reason: str
    message: str
    count: int = 0
    rows: list[int] = dataclasses.field(default_factory=list)


@dataclass(slots=True)
class Report:
    """What became of a file's rows. `faults` by field and rule."""

    valid: int = 0
    faults: dict[tuple[str, str], Fault] = dataclasses.field(default_factory=dict)

    @property
    def invalid(self) -> int:
        """Rows that break a rule; each is counted once, for the first that it breaks."""
        return sum(fault.count for fault in self.faults.values())

    def add(self, numbers: list[int], answer: ingestion.ValidateSamplesResponse) -> None:
        """Count what was answered about the rows of these numbers."""
        self.valid += answer.valid_count
        for found in answer.faults:
            # Of a name that nobody declared there can be thousands.
            fault = self.faults.setdefault(
                (found.field, found.rule), Fault(found.field, found.rule, found.reason, found.message)
            )
            fault.count += 1
            if len(fault.rows) < SHOWN_ROWS:
                fault.rows.append(numbers[found.index])


async def validate(
    stub: ingestion_grpc.IngestionServiceAsyncStub,
    rows: Iterator[Row],
    schema: ingestion.Schema,
    report: Report,
    judged: Callable[[int], None],
) -> None:
    """Judge rows by a schema and add what was found to the report; `judged` is told of rows that are done."""
    asked: deque[list[int]] = deque()

    async def requests() -> AsyncIterator[ingestion.ValidateSamplesRequest]:
        first = True
        while group := await asyncio.to_thread(_group, rows):
            asked.append([row.number for row in group])
            yield ingestion.ValidateSamplesRequest(
                schema=schema if first else None, json=[row.json for row in group]
            )
            first = False

    async for answer in stub.ValidateSamples(requests()):
        numbers = asked.popleft()
        report.add(numbers, answer)
        judged(len(numbers))


def _group(rows: Iterator[Row]) -> list[Row]:
    """So many rows as one request should have."""
    group: list[Row] = []
    size = 0
    for row in islice(rows, REQUEST_ROWS):
        group.append(row)
        size += len(row.json)
        if size >= REQUEST_BYTES:
            break
    return group
