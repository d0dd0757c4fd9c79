"""RPC messages to use cases and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.inference.v1 import inference_pb2_grpc
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.drift_messages import rules_from
from headrace.inference.explain_messages import explanation_message, wish_from
from headrace.inference.messages import (
    deployment_message,
    plan_from,
    prediction_message,
    rollout_message,
    scaling_from,
    serving_change_from,
)
from headrace.inference.quality_messages import given_labels, quality_message
from headrace.inference.use_cases.deployments import Deployments
from headrace.inference.use_cases.erase_predictions import ErasePredictions
from headrace.inference.use_cases.explain import Explain
from headrace.inference.use_cases.measure_quality import MeasureQuality
from headrace.inference.use_cases.ports import DataPlane
from headrace.inference.use_cases.route import route_of
from headrace.inference.use_cases.submit_feedback import SubmitFeedback
from headrace.rpc import paging

WATCH_SECONDS = 0.2


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The inference service's API; the proto says what each method does."""

    def __init__(
        self,
        deployments: Deployments,
        erase_predictions: ErasePredictions,
        data_plane: DataPlane,
        explain: Explain,
        measure_quality: MeasureQuality,
        submit_feedback: SubmitFeedback,
        *,
        address: str,
        changed: Callable[[], None],
    ) -> None:
        self._deployments = deployments
        self._erase_predictions = erase_predictions
        self._data_plane = data_plane
        self._explain = explain
        self._measure_quality = measure_quality
        self._submit_feedback = submit_feedback
        self._address = address
        self._changed = changed

    async def ApplyDeployment(self, request: api.ApplyDeploymentRequest, context: Any) -> api.Deployment:
        """Create or change a deployment."""
        batching = request.batching if request.HasField("batching") else None
        known = await self._deployments.apply(
            request.name,
            request.model,
            plan_from(request.rollout),
            rules_from(request.drift),
            serving_change_from(
                batching, request.instances, request.log if request.HasField("log") else None
            ),
            scaling_from(request.scaling) if request.HasField("scaling") else None,
        )
        self._changed()
        return self._message(known)

    async def GetDeployment(self, request: api.GetDeploymentRequest, context: Any) -> api.Deployment:
        """One deployment."""
        return self._message(await self._deployments.get(request.name))

    async def ListDeployments(
        self, request: api.ListDeploymentsRequest, context: Any
    ) -> api.ListDeploymentsResponse:
        """Deployments by name."""
        size = paging.page_size(request.page_size)
        position = paging.decode_token(request.page_token, str)
        rows = await self._deployments.list_all(str(position[0]) if position else "", size + 1)
        page, token = paging.cut(rows, size, lambda known: (known[0].name,))
        return api.ListDeploymentsResponse(
            deployments=[self._message(known) for known in page], next_page_token=token
        )

    async def WatchDeployment(
        self, request: api.WatchDeploymentRequest, context: Any
    ) -> AsyncIterator[api.Deployment]:
        """A deployment as it is, then after every change."""
        last = None
        while True:
            message = self._message(await self._deployments.get(request.name))
            if message != last:
                last = message
                yield message
            await asyncio.sleep(WATCH_SECONDS)

    async def DeleteDeployment(
        self, request: api.DeleteDeploymentRequest, context: Any
    ) -> api.DeleteDeploymentResponse:
        """Take a deployment away."""
        await self._deployments.delete(request.name)
        self._changed()
        return api.DeleteDeploymentResponse()

    async def AbortRollout(self, request: api.AbortRolloutRequest, context: Any) -> api.Deployment:
        """Take the traffic back."""
        known = await self._deployments.abort_rollout(request.deployment)
        self._changed()
        return self._message(known)

    async def PauseRollout(self, request: api.PauseRolloutRequest, context: Any) -> api.Deployment:
        """Keep a rollout where it is."""
        known = await self._deployments.pause_rollout(request.deployment)
        self._changed()
        return self._message(known)

    async def ResumeRollout(self, request: api.ResumeRolloutRequest, context: Any) -> api.Deployment:
        """Let a paused rollout go on."""
        known = await self._deployments.resume_rollout(request.deployment)
        self._changed()
        return self._message(known)

    async def PromoteRollout(self, request: api.PromoteRolloutRequest, context: Any) -> api.Deployment:
        """Give a rollout's version all traffic."""
        known = await self._deployments.promote_rollout(request.deployment)
        self._changed()
        return self._message(known)

    async def ListRollouts(self, request: api.ListRolloutsRequest, context: Any) -> api.ListRolloutsResponse:
        """Rollouts, newest first."""
        size = paging.page_size(request.page_size)
        before, before_id = _position(request.page_token)
        rows = await self._deployments.rollouts(request.deployment, before, before_id, size + 1)
        page, token = paging.cut(rows, size, lambda row: (row.create_time.isoformat(), row.id))
        return api.ListRolloutsResponse(rollouts=map(rollout_message, page), next_page_token=token)

    async def ListPredictions(
        self, request: api.ListPredictionsRequest, context: Any
    ) -> api.ListPredictionsResponse:
        """Predictions, newest first."""
        size = paging.page_size(request.page_size)
        before, before_id = _position(request.page_token)
        rows = await self._deployments.predictions(request.deployment, before, before_id, size + 1)
        page, token = paging.cut(rows, size, lambda row: (row.time.isoformat(), row.event_id))
        return api.ListPredictionsResponse(predictions=map(prediction_message, page), next_page_token=token)

    async def ErasePredictions(
        self, request: api.ErasePredictionsRequest, context: Any
    ) -> api.ErasePredictionsResponse:
        """Remove a subject's predictions."""
        count = await self._erase_predictions(request.erasure, request.dataset, request.subject)
        return api.ErasePredictionsResponse(prediction_count=count)

    async def Explain(self, request: api.ExplainRequest, context: Any) -> api.Explanation:
        """Which inputs moved an answer."""
        return explanation_message(request.deployment, await self._explain(wish_from(request)))

    async def GetQuality(self, request: api.GetQualityRequest, context: Any) -> api.Quality:
        """Live quality from feedback."""
        found = await self._measure_quality(
            request.deployment,
            version=request.version,
            max_segments=request.max_segments,
            min_labels=request.min_labels,
        )
        return quality_message(request.deployment, found)

    async def SubmitFeedback(
        self, request: api.SubmitFeedbackRequest, context: Any
    ) -> api.SubmitFeedbackResponse:
        """True labels of predictions."""
        joined = await self._submit_feedback(request.deployment, given_labels(request.labels))
        return api.SubmitFeedbackResponse(label_count=len(request.labels), joined_count=joined)

    def _message(self, known: tuple[Deployment, list[ServedVersion]]) -> api.Deployment:
        deployment, versions = known
        message = deployment_message(deployment, versions, self._address)
        if message.ready and (
            problem := self._data_plane.problem(deployment.name, route_of(deployment, versions))
        ):
            message.ready = False
            message.message = problem
        return message


def _position(token: str) -> tuple[datetime | None, str]:
    position = paging.decode_token(token, str, str)
    if position is None:
        return None, ""
    return datetime.fromisoformat(str(position[0])), str(position[1])
