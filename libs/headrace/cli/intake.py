"""What comes into a stack's datasets: the service's own counts, and the metrics of its instances."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client.parser import text_string_to_metric_families

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.telemetry import names

if TYPE_CHECKING:
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient

_PATIENCE_SECONDS: Final = 5.0
_MEMORY: Final = "process_resident_memory_bytes"


@dataclass(frozen=True)
class Metrics:
    """Samples of all instances, summed by metric; and by metric and dataset, the largest."""

    totals: Mapping[str, float]
    by_dataset: Mapping[tuple[str, str], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Intake:
    """One look: `moment` in seconds of a steady clock; metrics are None where no instance was reached."""

    moment: float
    datasets: Sequence[ingestion.Dataset]
    metrics: Metrics | None

    def since(self, before: Intake) -> dict[str, Plain]:
        """What `headrace dataset top` shows: rates since an earlier look, the rest as it is now."""
        seconds = self.moment - before.moment
        earlier = {dataset.name: dataset for dataset in before.datasets}
        return {
            "events_per_second": _rate(self._grown(before, names.METRIC_INGESTION_EVENTS), seconds),
            "duplicates_per_second": _rate(self._grown(before, names.METRIC_INGESTION_DUPLICATES), seconds),
            "lag_events": self._total(names.METRIC_INGESTION_LAG),
            "commit_seconds": self._mean(before, names.METRIC_INGESTION_COMMIT_SECONDS),
            "batch_events": self._mean(before, names.METRIC_INGESTION_BATCH_EVENTS),
            "memory_mebibytes": _times(self._total(_MEMORY), 1 / 2**20),
            "datasets": [
                self._row(dataset, earlier.get(dataset.name, dataset), seconds) for dataset in self.datasets
            ],
        }

    def _row(self, now: ingestion.Dataset, before: ingestion.Dataset, seconds: float) -> dict[str, Plain]:
        key = (names.METRIC_INGESTION_DATASET_FRESHNESS, now.name)
        return {
            "dataset": now.name,
            "rows": now.row_count,
            "rows_per_second": _rate(now.row_count - before.row_count, seconds),
            "rejected": now.rejected_count,
            "rejected_per_second": _rate(now.rejected_count - before.rejected_count, seconds),
            "freshness_seconds": self.metrics.by_dataset.get(key) if self.metrics else None,
            "latest_version": now.latest_version,
        }

    def _total(self, name: str) -> float | None:
        return self.metrics.totals.get(name, 0.0) if self.metrics else None

    def _grown(self, before: Intake, name: str) -> float | None:
        """How much a counter grew; an instance that was started again begins at nothing."""
        now, then = self._total(name), before._total(name)
        return None if now is None or then is None else max(0.0, now - then)

    def _mean(self, before: Intake, name: str) -> float | None:
        """Of a histogram's observations since then; None where there are none."""
        count, total = self._grown(before, f"{name}_count"), self._grown(before, f"{name}_sum")
        return total / count if count and total is not None else None


async def look(client: HeadraceClient) -> Intake:
    """Look at everything that there is now. Raises HeadraceError where the service does not answer."""
    datasets: list[ingestion.Dataset] = []
    token = ""
    while True:
        page = await client.ingestion.ListDatasets(ingestion.ListDatasetsRequest(page_token=token))
        datasets += page.datasets
        token = page.next_page_token
        if not token:
            break
    addresses = client.targets.addresses.get("ingestion_http", "")
    texts = await asyncio.gather(
        *(asyncio.to_thread(_fetch, address) for address in addresses.split(",") if address)
    )
    reached = [text for text in texts if text]
    return Intake(time.monotonic(), datasets, parse(reached) if reached else None)


def parse(texts: Sequence[str]) -> Metrics:
    """Metrics of several instances in Prometheus' text format, as one."""
    totals: defaultdict[str, float] = defaultdict(float)
    by_dataset: dict[tuple[str, str], float] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                totals[sample.name] += sample.value
                if "dataset" in sample.labels:
                    key = (sample.name, sample.labels["dataset"])
                    by_dataset[key] = max(sample.value, by_dataset.get(key, 0.0))
    return Metrics(totals, by_dataset)


def _fetch(address: str) -> str:
    """An instance's metrics; nothing where it does not answer."""
    connection = http.client.HTTPConnection(address, timeout=_PATIENCE_SECONDS)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


def _rate(grown: float | None, seconds: float) -> float | None:
    return _times(grown, 1 / seconds) if seconds else None


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
