"""Predictions as rows of a dataset: one sample for each row of a request.

They are sent to the samples topic under ids that are the same whenever they are sent, since whoever dies may
send them again; ingestion leaves out what it has stored.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, Sequence

import orjson

from headrace.errors import NotFound
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.log_table import KEY, PREDICTION_ID, Column, Kind
from headrace.inference.use_cases.ports import UnitOfWork
from headrace.inference.use_cases.table_ports import LogTables, TabledPrediction, TableRow, TableRows
from headrace.runtime.faults import fault_point

_TRACEPARENT_PARTS = 4
PASS_SECONDS = 1.0

logger = logging.getLogger(__name__)


async def until_named(work: UnitOfWork) -> None:
    """Return when some deployment has named a dataset for its predictions, now or ever."""
    while True:
        try:
            async with work() as opened:
                if await opened.rows.has_log_table():
                    return
        except Exception as error:  # whatever it is, the next pass is the repair
            logger.warning("whether predictions become rows is not known yet: %r", error)
        await asyncio.sleep(PASS_SECONDS)


class LogTable:
    """The use case."""

    def __init__(self, work: UnitOfWork, tables: LogTables, send: TableRows) -> None:
        self._work = work
        self._tables = tables
        self._send = send
        # Versions never change, and what a dataset takes it goes on taking.
        self._columns: dict[tuple[str, str, int], Sequence[Column]] = {}
        # Of many that come at once, one asks.
        self._asking = asyncio.Lock()

    async def __call__(self, predictions: Sequence[TabledPrediction]) -> None:
        """Send the rows of all of them or, where that fails, perhaps some; whoever repeats it doubles none.

        What was made before its subject was erased from the dataset is left out. Raises NotFound
        VERSION_UNKNOWN, and what `LogTables.columns` raises.
        """
        columns = [await self._columns_of(entry) for entry in predictions]
        # Not before they can be sent: an erasure may come while a dataset is waited for.
        erased = await self._erased(predictions)
        rows = [
            row
            for entry, its_columns in zip(predictions, columns, strict=True)
            if entry.prediction.event_id not in erased
            for row in rows_of(entry, its_columns)
        ]
        fault_point("inference.before-table-publish")
        await self._send(rows)
        fault_point("inference.after-table-publish")

    async def _columns_of(self, entry: TabledPrediction) -> Sequence[Column]:
        key = (entry.dataset, entry.model, entry.prediction.version)
        if key not in self._columns:
            async with self._asking:
                if key not in self._columns:
                    version = await self._version(entry.model, entry.prediction.version)
                    self._columns[key] = await self._tables.columns(entry.dataset, version)
        return self._columns[key]

    async def _version(self, model: str, number: int) -> ServedVersion:
        async with self._work() as work:
            versions = await work.rows.served_versions(model)
        for version in versions:
            if version.version == number:
                return version
        raise NotFound("VERSION_UNKNOWN", f"version {number} of model {model} was never promoted here")

    async def _erased(self, predictions: Sequence[TabledPrediction]) -> frozenset[str]:
        named = [entry for entry in predictions if entry.prediction.subject]
        if not named:
            return frozenset()
        async with self._work() as work:
            return await work.rows.erased_from_tables(
                [
                    (it.prediction.event_id, it.dataset, it.prediction.subject, it.prediction.time)
                    for it in named
                ]
            )


def rows_of(entry: TabledPrediction, columns: Sequence[Column]) -> list[TableRow]:
    """A prediction's rows. Values that were not logged, or are no numbers of JSON's, are null."""
    prediction = entry.prediction
    parts = prediction.traceparent.split("-")
    key = prediction.subject or prediction.prediction_id
    count = _rows(prediction.inputs)
    values = {
        column.name: _values(prediction.outputs if column.is_answer else prediction.inputs, column, count)
        for column in columns
    }
    return [
        TableRow(
            # Of a request for one row that of its prediction.
            event_id=prediction.event_id if count == 1 else f"{prediction.event_id}/{row}",
            dataset=entry.dataset,
            key=key,
            time=prediction.time,
            data=orjson.dumps(
                {
                    KEY: key,
                    PREDICTION_ID: prediction.prediction_id,
                    "deployment": prediction.deployment,
                    "model": entry.model,
                    "model_version": prediction.version,
                    "row": row,
                    "seconds": prediction.seconds,
                    "trace_id": parts[1] if len(parts) == _TRACEPARENT_PARTS else None,
                    "segment": prediction.segment or None,
                    "shadow": prediction.shadow,
                    **{name: found[row] for name, found in values.items()},
                }
            ),
            traceparent=prediction.traceparent,
        )
        for row in range(count)
    ]


def _rows(inputs: Mapping[str, object]) -> int:
    for tensor in inputs.values():
        shape = tensor.get("shape") if isinstance(tensor, Mapping) else None
        if isinstance(shape, Sequence) and shape:
            return int(shape[0])
    return 1


def _values(tensors: Mapping[str, object], column: Column, rows: int) -> list[float | str | None]:
    tensor = tensors.get(column.tensor)
    data = tensor.get("data") if isinstance(tensor, Mapping) else None
    if not isinstance(data, Sequence) or len(data) != rows * column.width:
        return [None] * rows
    return [_value(value, column.kind) for value in data[column.place :: column.width]]


def _value(value: object, kind: Kind) -> float | str | None:
    if kind is Kind.TEXT:
        return value if isinstance(value, str) else None
    # The log has numbers that JSON has not as texts.
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else None
