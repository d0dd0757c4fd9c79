"""What examples show of a job and of a rollout, from services that answer what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from examples.shared import jobs, rollouts

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling

JOB = "4f7f2b3e-7b0c-4a9f-9a5e-0d3c9c0f6a11"


class Scheduling:
    """One job that is told once, and then nothing more."""

    def __init__(self, state: scheduling.JobState.ValueType) -> None:
        self._job = scheduling.Job(id=JOB, state=state)

    async def WatchJob(self, request: scheduling.WatchJobRequest) -> AsyncIterator[scheduling.Job]:
        yield self._job
        if self._job.state == scheduling.JOB_STATE_QUEUED:
            await asyncio.Event().wait()

    async def WhyPending(self, request: scheduling.WhyPendingRequest) -> scheduling.WhyPendingResponse:
        assert request.id == JOB
        return scheduling.WhyPendingResponse(
            reason="NEVER_FITS", message="it needs 64 cores, and the largest node has 2"
        )


async def test_a_job_is_followed_to_its_end() -> None:
    client: Any = SimpleNamespace(scheduling=Scheduling(scheduling.JOB_STATE_SUCCEEDED))
    job = await jobs.follow(client, JOB)
    assert job.state == scheduling.JOB_STATE_SUCCEEDED


async def test_a_job_that_fits_nowhere_fails_with_the_reason() -> None:
    client: Any = SimpleNamespace(scheduling=Scheduling(scheduling.JOB_STATE_QUEUED))
    with pytest.raises(TimeoutError, match=r"job .* to end: it needs 64 cores, and the largest node has 2"):
        await jobs.follow(client, JOB, seconds=0.01)


def deployment(
    version: int, state: str, weight: int, *, ready: bool = True, traffic: dict[int, int]
) -> inference.Deployment:
    return inference.Deployment(
        name="d",
        ready=ready,
        traffic=[inference.VersionTraffic(version=v, weight=w) for v, w in traffic.items()],
        rollout=inference.Rollout(
            to_version=version,
            state=inference.RolloutState.Value(f"ROLLOUT_STATE_{state}"),
            weight=weight,
        ),
    )


async def followed(changes: Sequence[inference.Deployment]) -> Any:
    async def watch(_request: inference.WatchDeploymentRequest) -> AsyncIterator[inference.Deployment]:
        for change in changes:
            yield change

    client: Any = SimpleNamespace(inference=SimpleNamespace(WatchDeployment=watch))
    return await rollouts.follow(client, "d", version=2)


async def test_a_rollout_is_shown_step_by_step(capsys: pytest.CaptureFixture[str]) -> None:
    course = await followed(
        [
            deployment(1, "SUCCEEDED", 100, traffic={1: 100}),
            deployment(2, "LOADING", 0, traffic={1: 100}),
            deployment(2, "PROGRESSING", 10, traffic={1: 90, 2: 10}),
            deployment(2, "PROGRESSING", 50, traffic={1: 50, 2: 50}),
            deployment(2, "PROGRESSING", 100, traffic={2: 100}),
            deployment(2, "SUCCEEDED", 100, ready=False, traffic={2: 100}),
            deployment(2, "SUCCEEDED", 100, traffic={2: 100}),
        ]
    )
    assert (course.state, course.steps) == ("SUCCEEDED", [10, 50, 100])
    assert "PROGRESSING  v1  90 %  v2  10 %" in capsys.readouterr().out


async def test_a_rollout_that_goes_back_ends_the_watch() -> None:
    course = await followed(
        [
            deployment(2, "PROGRESSING", 10, traffic={1: 90, 2: 10}),
            deployment(2, "ROLLED_BACK", 0, traffic={1: 100}),
        ]
    )
    assert (course.state, course.steps) == ("ROLLED_BACK", [10])
