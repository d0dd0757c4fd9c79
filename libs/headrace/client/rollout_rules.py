"""The `rollout` of a pipeline's file: who gets a new version when, and how much worse it may be."""

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
    "disagreement",
    "min_samples",
    "confidence",
    "longest_hold",
)


def rollout_spec(document: Document, place: Place | None) -> scheduling.RolloutSpec | None:
    """Read it; None where its steps are wrong, which is noted."""
    entries = document.mapping(place, ("steps", "hold", "analysis", "shadow", "sticky", "audience"))
    steps = [document.integer(step, bits=32) for step in document.items(entries.get("steps"))] or [100]
    least = 0 if "audience" in entries else 1
    if steps != sorted(set(steps)) or steps[-1] != 100 or steps[0] < least:
        document.fail(entries["steps"], f"must be rising percentages of which the last is 100, not {steps}")
        return None
    rollout = scheduling.RolloutSpec(steps=steps, hold=to_duration(document.duration(entries.get("hold"))))
    if "analysis" in entries:
        rollout.analysis.CopyFrom(rollout_analysis(document, entries["analysis"]))
        if rollout.analysis.HasField("disagreement") and "shadow" not in entries:
            document.fail(entries["analysis"], "disagreement needs a shadow, whose answers it compares")
    if "shadow" in entries:
        shadow = document.mapping(entries["shadow"], ("share", "hold"))
        rollout.shadow.share = document.integer(shadow.get("share"), 100, bits=32)
        if "hold" in shadow:
            rollout.shadow.hold.CopyFrom(to_duration(document.duration(shadow["hold"])))
    if "sticky" in entries:
        sticky = document.mapping(entries["sticky"], ("header",), ("header",))
        rollout.sticky.header = document.text(sticky.get("header"))
    if "audience" in entries:
        audience = document.mapping(entries["audience"], ("header", "values"), ("header", "values"))
        rollout.audience.header = document.text(audience.get("header"))
        rollout.audience.values.extend(map(document.text, document.items(audience.get("values"))))
    return rollout


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
    if "disagreement" in entries:
        bound = document.mapping(entries["disagreement"], ("max_share", "tolerance"), ("max_share",))
        analysis.disagreement.SetInParent()
        analysis.disagreement.max_share = document.number(bound.get("max_share"))
        analysis.disagreement.tolerance = document.number(bound.get("tolerance"))
    if "longest_hold" in entries:
        analysis.longest_hold.CopyFrom(to_duration(document.duration(entries["longest_hold"])))
    return analysis


def _limit(document: Document, place: Place, name: str) -> float:
    return document.number(document.mapping(place, (name,), (name,)).get(name))
