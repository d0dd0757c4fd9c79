"""The Python SDK: typed calls, samples in, predictions out, pipelines from YAML."""

from __future__ import annotations

from headrace.client.client import HeadraceClient
from headrace.client.targets import Targets

__all__ = ["HeadraceClient", "Targets"]
