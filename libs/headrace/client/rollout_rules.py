"""The `rollout.analysis` of a pipeline's file: how much worse a new version may be."""

from __future__ import annotations

from typing import Final

from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.client.yaml_reader import Document, Place
from headrace.rpc.convert import to_duration

METRICS: Final = {
    "accuracy": scheduling.RolloutAnalysis.QUALITY_METRIC_ACCURACY,
    "recall": scheduling.RolloutAnalysis.QUALITY_METRIC_RECALL,
    "precision": scheduling.RolloutAnalysis.QUALITY_METRIC_PRECISION,
}
KEYS: Final = (
    "error_rate",
    "latency_p50",
    "latency_p99",
    "drift",
    "quality",
    "min_samples",
    "confidence",
    "longest_hold",
)


def rollout_analysis(document: Document, place: Place) -> scheduling.RolloutAnalysis:
    """Read it; the service says whether its numbers make sense."""
    entries = document.mapping(place, KEYS)
    analysis = scheduling.RolloutAnalysis(
        min_samples=document.integer(entries.get("min_samples"), bits=32),
        confidence=document.number(entries.get("confidence")),
    )
    if "error_rate" in entries:
        # A limit of 0 is a limit, too.
        analysis.error_rate.SetInParent()
        analysis.error_rate.max_increase = _limit(document, entries["error_rate"], "max_increase")
    if "latency_p50" in entries:
        analysis.latency_p50.max_ratio = _limit(document, entries["latency_p50"], "max_ratio")
    if "latency_p99" in entries:
        analysis.latency_p99.max_ratio = _limit(document, entries["latency_p99"], "max_ratio")
    if "drift" in entries:
        analysis.drift.SetInParent()
        analysis.drift.max_shift = _limit(document, entries["drift"], "max_shift")
    if "quality" in entries:
        quality = document.mapping(entries["quality"], ("metric", "max_drop"), ("metric", "max_drop"))
        analysis.quality.metric = document.choice(
            quality.get("metric"), METRICS, scheduling.RolloutAnalysis.QUALITY_METRIC_ACCURACY
        )
        analysis.quality.max_drop = document.number(quality.get("max_drop"))
    if "longest_hold" in entries:
        analysis.longest_hold.CopyFrom(to_duration(document.duration(entries["longest_hold"])))
    return analysis


def _limit(document: Document, place: Place, name: str) -> float:
    return document.number(document.mapping(place, (name,), (name,)).get(name))
