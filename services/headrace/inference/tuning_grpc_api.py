"""The tuning RPC to its use case and back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

from headrace.api.inference.v1 import tuning_pb2 as api
from headrace.api.inference.v1 import tuning_pb2_grpc
from headrace.inference.domain.serving import Serving
from headrace.inference.domain.tuning import Goal, Measurement
from headrace.inference.messages import batching_message
from headrace.inference.use_cases.tune import Started, Tuned, TuneDeployment, TuningWish
from headrace.rpc.convert import from_duration, to_duration

DEFAULT_SHARE = 0.99
DEFAULT_TIME = timedelta(minutes=5)


class TuningServicer(tuning_pb2_grpc.TuningServiceServicer):
    """Tuning; the proto says what it does."""

    def __init__(self, tune: TuneDeployment, *, changed: Callable[[], None]) -> None:
        """`changed` is called when a deployment was."""
        self._tune = tune
        self._changed = changed

    async def TuneDeployment(
        self, request: api.TuneDeploymentRequest, context: Any
    ) -> AsyncIterator[api.TuneDeploymentResponse]:
        """Measurements as they come, last the proposal."""
        wish = wish_from(request)
        async with aclosing(self._tune(wish)) as steps:
            async for step in steps:
                if isinstance(step, Tuned) and step.applied:
                    self._changed()
                yield step_message(step, wish.goal)


def wish_from(request: api.TuneDeploymentRequest) -> TuningWish:
    """What is asked for."""
    return TuningWish(
        deployment=request.deployment,
        goal=Goal(
            seconds=from_duration(request.target).total_seconds(),
            share=request.share or DEFAULT_SHARE,
            rate=request.rate,
        ),
        max_time=from_duration(request.max_time) if request.HasField("max_time") else DEFAULT_TIME,
        most_instances=request.max_instances,
        beside_traffic=request.beside_traffic,
        apply=request.apply,
    )


def step_message(step: Started | Measurement | Tuned, goal: Goal) -> api.TuneDeploymentResponse:
    """One answer of the stream."""
    match step:
        case Started():
            start = api.TuningStart(
                version=step.version,
                current=_setting(step.current),
                requests=step.requests,
                rows=step.rows,
            )
            return api.TuneDeploymentResponse(start=start)
        case Measurement():
            return api.TuneDeploymentResponse(measurement=_measurement(step, goal))
        case Tuned(proposal):
            message = api.TuningProposal(
                setting=_setting(proposal.measurement.serving),
                measurement=_measurement(proposal.measurement, goal),
                current=_measurement(proposal.current, goal) if proposal.current is not None else None,
                keeps_target=proposal.keeps_target,
                changes=proposal.changes,
                applied=step.applied,
                complete=step.complete,
                message=proposal.reason,
            )
            return api.TuneDeploymentResponse(proposal=message)


def _setting(serving: Serving) -> api.TunedSetting:
    return api.TunedSetting(batching=batching_message(serving), instances=serving.instances)


def _measurement(measurement: Measurement, goal: Goal) -> api.TuningMeasurement:
    return api.TuningMeasurement(
        setting=_setting(measurement.serving),
        in_flight=measurement.trial.in_flight,
        throughput=measurement.throughput,
        p50=to_duration(timedelta(seconds=measurement.p50)),
        latency=to_duration(timedelta(seconds=measurement.latency)),
        answered=measurement.answered,
        failed=measurement.failed,
        stable=measurement.stable,
        keeps_target=measurement.keeps(goal),
    )
