from __future__ import annotations

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.cli.intake import Intake, Metrics, parse
from headrace.telemetry import names

FIRST = """\
# TYPE headrace_ingestion_events_total counter
headrace_ingestion_events_total 100.0
# TYPE headrace_ingestion_lag_events gauge
headrace_ingestion_lag_events{partition="0"} 5.0
headrace_ingestion_lag_events{partition="1"} 7.0
# TYPE headrace_ingestion_dataset_freshness_seconds gauge
headrace_ingestion_dataset_freshness_seconds{dataset="a"} 0.25
"""
SECOND = """\
# TYPE headrace_ingestion_events_total counter
headrace_ingestion_events_total 50.0
# TYPE headrace_ingestion_dataset_freshness_seconds gauge
headrace_ingestion_dataset_freshness_seconds{dataset="a"} 0.75
"""


def dataset(name: str, rows: int, rejected: int = 0) -> ingestion.Dataset:
    return ingestion.Dataset(name=name, row_count=rows, rejected_count=rejected, latest_version=3)


def test_instances_are_seen_as_one() -> None:
    metrics = parse([FIRST, SECOND])
    assert metrics.totals[names.METRIC_INGESTION_EVENTS] == 150
    assert metrics.totals[names.METRIC_INGESTION_LAG] == 12
    assert metrics.by_dataset[names.METRIC_INGESTION_DATASET_FRESHNESS, "a"] == 0.75


def test_rates_are_those_since_the_earlier_look() -> None:
    before = Intake(
        10.0, [dataset("a", 100, 1)], Metrics({names.METRIC_INGESTION_EVENTS: 100, "x_count": 1, "x_sum": 9})
    )
    now = Intake(12.0, [dataset("a", 160, 5), dataset("b", 7)], parse([FIRST, SECOND]))
    seen = now.since(before)
    assert seen["events_per_second"] == 25
    assert seen["lag_events"] == 12
    assert seen["datasets"] == [
        {
            "dataset": "a",
            "rows": 160,
            "rows_per_second": 30,
            "rejected": 5,
            "rejected_per_second": 2,
            "freshness_seconds": 0.75,
            "latest_version": 3,
        },
        {
            "dataset": "b",
            "rows": 7,
            "rows_per_second": 0,
            "rejected": 0,
            "rejected_per_second": 0,
            "freshness_seconds": None,
            "latest_version": 3,
        },
    ]


def test_a_mean_is_of_the_interval() -> None:
    name = names.METRIC_INGESTION_COMMIT_SECONDS
    before = Intake(0.0, [], Metrics({f"{name}_count": 10, f"{name}_sum": 100}))
    assert (
        Intake(1.0, [], Metrics({f"{name}_count": 12, f"{name}_sum": 101})).since(before)["commit_seconds"]
        == 0.5
    )
    assert before.since(before)["commit_seconds"] is None


def test_a_counter_that_began_again_is_no_negative_rate() -> None:
    before = Intake(0.0, [], Metrics({names.METRIC_INGESTION_EVENTS: 100}))
    now = Intake(1.0, [], Metrics({names.METRIC_INGESTION_EVENTS: 3}))
    assert now.since(before)["events_per_second"] == 0


def test_without_metrics_the_services_own_counts_remain() -> None:
    before, now = Intake(0.0, [dataset("a", 1)], None), Intake(1.0, [dataset("a", 4)], None)
    seen = now.since(before)
    assert (seen["events_per_second"], seen["lag_events"], seen["memory_mebibytes"]) == (None, None, None)
    assert [row["rows_per_second"] for row in seen["datasets"]] == [3]  # type: ignore[union-attr,index,call-overload]
