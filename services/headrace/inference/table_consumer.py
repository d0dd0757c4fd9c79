"""Predictions whose deployment names a dataset, from their topic to the samples topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headrace.errors import FailedPrecondition, InvalidArgument, NotFound
from headrace.inference.consumers import predictions_from
from headrace.inference.use_cases.log_table import LogTable
from headrace.inference.use_cases.table_ports import TabledPrediction, TableRow
from headrace.messaging.consumer import PermanentFailure
from headrace.messaging.events import JSON, Event
from headrace.messaging.producer import Producer
from headrace.messaging.topics import SAMPLES

SOURCE: Final = "headrace/inference"
_SAMPLE: Final = "headrace.ingestion.sample.v1"
# Said by the runtime, of what was asked while its deployment had a dataset: later it may have another.
_DATASET: Final = "logdataset"
_MODEL: Final = "model"


class TableConsumer:
    """The handler of a consumer group of its own: what waits for ingestion holds up nothing else."""

    def __init__(self, log: LogTable) -> None:
        self._log = log

    async def prediction(self, event: Event) -> None:
        """One of `inference.predictions`."""
        await self.predictions_together([event])

    async def predictions_together(self, events: Sequence[Event]) -> None:
        """Several at once. Most may name no dataset, and cost a look at their attributes."""
        tabled = [
            TabledPrediction(prediction, event.extensions[_DATASET], event.extensions.get(_MODEL, ""))
            for event in events
            if event.extensions.get(_DATASET)
            for prediction in predictions_from(event)
        ]
        if not tabled:
            return
        try:
            await self._log(tabled)
        except (FailedPrecondition, InvalidArgument, NotFound) as error:
            # Waiting helps none of them; an outage is another matter.
            raise PermanentFailure(error.reason, error.message) from error


class PublishedRows:
    """Rows as samples (`use_cases.table_ports.TableRows`)."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer

    async def __call__(self, rows: Sequence[TableRow]) -> None:
        """Send all of them, and return when the broker has them."""
        await self._producer.publish_all(
            SAMPLES,
            [
                (
                    row.key,
                    Event(
                        id=row.event_id,
                        source=SOURCE,
                        type=_SAMPLE,
                        subject=row.dataset,
                        time=row.time,
                        data=row.data,
                        content_type=JSON,
                        traceparent=row.traceparent,
                    ),
                )
                for row in rows
            ],
        )
