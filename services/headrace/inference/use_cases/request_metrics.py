"""What is counted of asynchronous requests."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

from headrace.telemetry import names

REQUESTS: Final = Counter(
    names.METRIC_INFERENCE_REQUESTS.removesuffix("_total"),
    "Asynchronous requests that ended, by state",
    ["state"],
)
REPEATED: Final = Counter(
    names.METRIC_INFERENCE_REQUESTS_REPEATED.removesuffix("_total"),
    "Responses that were published again, to requests that came again",
)
RETRIES: Final = Counter(
    names.METRIC_INFERENCE_REQUEST_RETRIES.removesuffix("_total"),
    "Calls for asynchronous requests that are made again: after a failure, or after there was no room",
    ["why"],
)
UNDER_WAY: Final = Gauge(
    names.METRIC_INFERENCE_REQUESTS_UNDER_WAY, "Calls under way for asynchronous requests"
)
