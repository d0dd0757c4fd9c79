"""What is counted of explanations; how calls end, the RPC metrics count."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

from headrace.telemetry import names

ENDED: Final = Counter(
    names.METRIC_INFERENCE_EXPLAINERS_ENDED.removesuffix("_total"),
    "Processes that explain and ended at work: they died, hung, had no memory, or their caller went away",
)
