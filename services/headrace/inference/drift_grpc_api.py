"""`DriftService`: messages to use cases and back."""

from __future__ import annotations

from typing import Any

from headrace.api.inference.v1 import drift_pb2 as api
from headrace.api.inference.v1 import drift_pb2_grpc
from headrace.inference.drift_messages import drift_message
from headrace.inference.use_cases.watch_drift import ReportDrift


class DriftServicer(drift_pb2_grpc.DriftServiceServicer):
    """The proto says what each method does."""

    def __init__(self, report: ReportDrift) -> None:
        self._report = report

    async def GetDrift(self, request: api.GetDriftRequest, context: Any) -> api.Drift:
        """How a deployment stands."""
        return drift_message(await self._report(request.deployment))
