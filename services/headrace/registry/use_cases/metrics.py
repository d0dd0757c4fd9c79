"""What the service counts."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

from headrace.telemetry import names

VERSIONS: Final = Counter(
    names.METRIC_REGISTRY_VERSIONS.removesuffix("_total"), "Versions judged, by state", ["state"]
)
UPLOADS: Final = Counter(
    names.METRIC_REGISTRY_UPLOADS.removesuffix("_total"),
    "Uploads of artifacts: stored, unchanged (the same bytes were there) or failed",
    ["outcome"],
)
ARTIFACT_BYTES: Final = Counter(
    names.METRIC_REGISTRY_ARTIFACT_BYTES.removesuffix("_total"), "Bytes of artifacts that were stored"
)
