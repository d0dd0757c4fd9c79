"""Rollouts that protect who calls: a version that does not load, parts that die, and nobody notices."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import tritonclient.grpc.aio as triton
from aiokafka import AIOKafkaConsumer
from tests.component.inference.conftest import DEADLINE, MakePlane, Plane, ask
from tests.support.models import failing_classifier, slow_classifier
from tests.support.proxy import proxied
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import FailedPrecondition, Unavailable
from headrace.events.inference.v1 import events_pb2
from headrace.messaging.topics import DEPLOYMENTS

pytestmark = pytest.mark.broker

# What the slow model computes for a second or two, and what its callers wait.
SLOW = 40_000.0
SHORT_SECONDS = 0.3


@dataclass
class Calls:
    """What a client that never stops calling has seen."""

    versions: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@asynccontextmanager
async def calling(
    plane: Plane, name: str, *, features: Sequence[float] = (1.0,), seconds: float = 10
) -> AsyncIterator[Calls]:
    """Call all the time, with a row of each number in turn, waiting so long; every failure is kept."""
    calls = Calls()

    async def call() -> None:
        async with plane.client() as client:
            for feature in itertools.cycle(features):
                try:
                    answer = await ask(client, name, feature=feature, seconds=seconds)
                    calls.versions.append(answer.get_response().model_version)
                except Exception as error:  # whatever it is, a caller has seen it
                    calls.failures.append(repr(error) + str(error))
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(call()) for _ in range(2)]
    try:
        yield calls
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def rollouts_told(plane: Plane, name: str) -> list[api.Rollout]:
    """What the deployment's events said of its second version, up to the end of that rollout."""
    consumer = AIOKafkaConsumer(
        DEPLOYMENTS, bootstrap_servers=plane.bootstrap, auto_offset_reset="earliest", group_id=None
    )
    found: list[api.Rollout] = []
    async with consumer, asyncio.timeout(DEADLINE):
        while not found or not found[-1].HasField("end_time"):
            record = await consumer.getone()
            if record.key == name.encode():
                rollout = events_pb2.DeploymentChanged.FromString(record.value).deployment.rollout
                if rollout.to_version == 2:
                    found.append(rollout)
    return found


async def until_answered(calls: Calls, more: int) -> None:
    """Wait until so many more calls were answered."""
    wanted = len(calls.versions) + more

    async def answered() -> int:
        return len(calls.versions)

    await eventually(answered, lambda count: count >= wanted)


async def until_answer(client: triton.InferenceServerClient, name: str) -> triton.InferResult:
    """Ask until there is an answer."""

    async def answer() -> triton.InferResult | None:
        try:
            return await ask(client, name)
        except triton.InferenceServerException:
            return None

    found = await eventually(answer, lambda given: given is not None)
    assert found is not None
    return found


async def test_traffic_moves_in_steps_and_no_call_fails(plane: Plane, name: str) -> None:
    await plane.deploy(name, steps=(10, 50, 100), hold=0.5)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with calling(plane, name) as calls:
        await plane.promote(name, 2)
        await plane.until_live(name, 2)
        # The old version is unloaded some time after it lost its traffic.
        await plane.until_loaded(name, {2})
    assert calls.failures == []
    assert set(calls.versions) == {"1", "2"}
    rollouts = (await plane.stub.ListRollouts(api.ListRolloutsRequest(deployment=name))).rollouts
    assert [r.state for r in rollouts] == [api.ROLLOUT_STATE_SUCCEEDED] * 2


async def test_a_version_that_does_not_load_never_gets_traffic(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with calling(plane, name) as calls:
        await plane.promote(name, 2, model=b"no model at all")
        failed = await plane.until(name, lambda d: d.rollout.state == api.ROLLOUT_STATE_FAILED)
    assert calls.failures == []
    assert set(calls.versions) == {"1"}
    assert failed.rollout.message.startswith("version 2 did not load")
    assert [(t.version, t.weight) for t in failed.traffic] == [(1, 100)]


async def test_a_version_that_fails_its_callers_loses_its_traffic(plane: Plane, name: str) -> None:
    await plane.deploy(name, steps=(50, 100), hold=2 * DEADLINE)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with calling(plane, name) as calls:
        await plane.promote(name, 2, model=failing_classifier())
        back = await plane.until(name, lambda d: d.rollout.state == api.ROLLOUT_STATE_ROLLED_BACK)
        await plane.until_loaded(name, {1})
        failures = len(calls.failures)
        await until_answered(calls, 50)
    assert back.rollout.message.startswith("version 2 failed ")
    assert [(t.version, t.weight) for t in back.traffic] == [(1, 100)]
    assert all("the model failed" in failure and "model.py" not in failure for failure in calls.failures)
    assert set(calls.versions) == {"1"}
    assert len(calls.failures) == failures
    judged = [rollout for rollout in await rollouts_told(plane, name) if rollout.HasField("judgement")]
    assert [rollout.judgement.verdict for rollout in judged][:1] == [api.ROLLOUT_VERDICT_HOLD]
    last = judged[-1]
    assert last.judgement.verdict == api.ROLLOUT_VERDICT_ROLL_BACK
    [finding] = last.judgement.findings
    assert finding.criterion == api.ROLLOUT_CRITERION_ERROR_RATE
    assert finding.standing == api.ROLLOUT_STANDING_VIOLATED
    assert finding.new_value == 1.0 > finding.low > finding.limit
    assert finding.new_samples >= 50


async def test_a_version_that_takes_longer_than_its_callers_wait_loses_its_traffic(
    plane: Plane, name: str
) -> None:
    plan = scheduling_pb2.RolloutSpec()
    plan.analysis.min_samples = 5
    await plane.deploy(name, steps=(50, 100), hold=2 * DEADLINE, rollout=plan)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with calling(plane, name, features=[SLOW], seconds=SHORT_SECONDS) as calls:
        await until_answered(calls, 10)
        await plane.promote(name, 2, model=slow_classifier())
        back = await plane.until(name, lambda d: d.rollout.state == api.ROLLOUT_STATE_ROLLED_BACK)
        await until_answered(calls, 10)
    assert back.rollout.message.startswith("version 2 failed ")
    assert all("DEADLINE_EXCEEDED" in failure for failure in calls.failures)


async def test_a_shadow_that_takes_longer_than_callers_wait_goes_back_and_callers_are_answered(
    plane: Plane, name: str
) -> None:
    plan = scheduling_pb2.RolloutSpec()
    plan.shadow.share = 100
    plan.shadow.hold.FromSeconds(int(2 * DEADLINE))
    plan.analysis.min_samples = 5
    await plane.deploy(name, rollout=plan)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with calling(plane, name, features=[2 * SLOW], seconds=4 * SHORT_SECONDS) as calls:
        await until_answered(calls, 10)
        await plane.promote(name, 2, model=slow_classifier())
        back = await plane.until(name, lambda d: d.rollout.state == api.ROLLOUT_STATE_ROLLED_BACK)
    assert back.rollout.message.startswith("version 2 failed ")
    assert set(calls.versions) == {"1"}


@pytest.mark.parametrize("steps", [(100,), (50, 100)], ids=["blue/green", "canary"])
async def test_a_version_that_answers_otherwise_goes_back(
    plane: Plane, name: str, steps: tuple[int, ...]
) -> None:
    plan = scheduling_pb2.RolloutSpec()
    plan.analysis.drift.max_shift = 0.2
    await plane.deploy(name, steps=steps, hold=2 * DEADLINE, rollout=plan)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    async with calling(plane, name) as calls:
        await until_answered(calls, 100)
        await plane.promote(name, 2)
        back = await plane.until(name, lambda d: d.rollout.state == api.ROLLOUT_STATE_ROLLED_BACK)
    assert "a change of 20.0% is allowed" in back.rollout.message
    assert [(t.version, t.weight) for t in back.traffic] == [(1, 100)]
    assert not calls.failures


async def test_the_version_before_a_newest_one_that_does_not_load_is_rolled_out(
    plane: Plane, name: str
) -> None:
    await plane.deploy(name, steps=(50, 100), hold=2 * DEADLINE)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await plane.until(name, lambda d: {t.version: t.weight for t in d.traffic} == {1: 50, 2: 50})
    await plane.promote(name, 3, model=b"no model at all")

    async def rollouts() -> list[tuple[int, int]]:
        listed = await plane.stub.ListRollouts(api.ListRolloutsRequest(deployment=name))
        return [(rollout.to_version, rollout.state) for rollout in listed.rollouts]

    expected = [
        (2, api.ROLLOUT_STATE_PROGRESSING),
        (3, api.ROLLOUT_STATE_FAILED),
        (2, api.ROLLOUT_STATE_ROLLED_BACK),
        (1, api.ROLLOUT_STATE_SUCCEEDED),
    ]
    await eventually(rollouts, lambda found: found == expected, DEADLINE)


async def test_a_name_serves_one_model(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    with pytest.raises(FailedPrecondition, match=f"delete it first, or deploy {name}-other") as raised:
        await plane.stub.ApplyDeployment(api.ApplyDeploymentRequest(name=name, model=f"{name}-other"))
    assert raised.value.reason == "DEPLOYMENT_OF_OTHER_MODEL"
    assert (await plane.get(name)).model == name
    async with plane.client() as client:
        assert (await ask(client, name)).get_response().model_version == "1"


async def test_a_deleted_deployment_that_is_applied_again_answers(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.stub.DeleteDeployment(api.DeleteDeploymentRequest(name=name))
    with pytest.raises(FailedPrecondition, match="apply it again in a few seconds"):
        await plane.stub.ApplyDeployment(api.ApplyDeploymentRequest(name=name, model=f"{name}-other"))
    await plane.deploy(name)
    await plane.until_live(name, 1)
    async with plane.client() as client:
        assert (await until_answer(client, name)).get_response().model_version == "1"


async def test_a_restarted_triton_has_its_models_back(make_plane: MakePlane, name: str) -> None:
    plane = await make_plane()
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    plane.triton.kill()
    await plane.triton.wait()
    await plane.triton.start()
    async with plane.client() as client:
        assert (await until_answer(client, name)).get_response().model_version == "1"


async def test_a_named_version_that_is_being_removed_answers_or_is_not_found(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    outcomes: set[str] = set()

    async def call(client: triton.InferenceServerClient) -> None:
        while True:
            try:
                answer = await ask(client, name, version="1", seconds=DEADLINE)
                outcomes.add(f"version {answer.get_response().model_version}")
            except triton.InferenceServerException as error:
                outcomes.add(f"{error.status()} {error.message()}")
            await asyncio.sleep(0)

    async with plane.client() as client:
        calls = [asyncio.create_task(call(client)) for _ in range(4)]
        await plane.promote(name, 2)
        await plane.until_live(name, 2)
        await plane.until_loaded(name, {2})
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    assert outcomes == {"version 1", f"StatusCode.NOT_FOUND model {name} has no live version 1; live: 2"}


async def test_while_the_database_is_away_calls_are_answered_and_afterwards_rollouts_go_on(
    make_plane: MakePlane, postgres_dsn: str, name: str
) -> None:
    # The registry is not there at all: nothing asks it while models are served.
    async with proxied(postgres_dsn) as (database, dsn):
        plane = await make_plane(HEADRACE_POSTGRES_DSN=dsn)
        await plane.deploy(name)
        await plane.promote(name, 1)
        await plane.until_live(name, 1)
        async with calling(plane, name) as calls:
            await database.cut()
            with pytest.raises(Unavailable):
                await plane.get(name)
            await plane.promote(name, 2)
            await until_answered(calls, 100)
            await database.open()
            await plane.until_live(name, 2)
            await until_answered(calls, 10)
        assert calls.failures == []
        assert set(calls.versions) == {"1", "2"}
        await plane.service.stop()


async def test_a_deleted_deployment_is_unknown(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.stub.DeleteDeployment(api.DeleteDeploymentRequest(name=name))
    async with asyncio.timeout(DEADLINE), plane.client() as client:
        while True:
            try:
                await ask(client, name)
            except Exception as error:
                assert "NOT_FOUND" in str(error) or "no model" in str(error)
                break


@pytest.mark.kill
@pytest.mark.parametrize(
    ("fault", "shadow"),
    [
        ("inference.after-load:2", None),
        ("inference.after-step-commit:2", None),
        ("inference.after-step-commit:3", None),
        # It has begun to shadow.
        ("inference.after-step-commit:3", scheduling_pb2.RolloutSpec.Shadow(share=100)),
    ],
)
async def test_a_rollout_goes_on_when_the_control_plane_died_and_callers_see_nothing(
    fault: str,
    shadow: scheduling_pb2.RolloutSpec.Shadow | None,
    make_plane: MakePlane,
    name: str,
    tmp_path: Path,
) -> None:
    plane = await make_plane(HEADRACE_FAULT=fault, HEADRACE_FAULT_ONCE=str(tmp_path / "fired"))
    rollout = scheduling_pb2.RolloutSpec(shadow=shadow)
    await plane.deploy(name, steps=(50, 100), hold=0.3, rollout=rollout)
    await plane.promote(name, 1)
    if not fault.endswith("step-commit:2"):
        await plane.until_live(name, 1)
    else:
        # The first version's own rollout has two commits: it dies at the second.
        await plane.service.killed()
        await plane.service.start()
        await plane.until_live(name, 1)
    async with calling(plane, name) as calls:
        await plane.promote(name, 2)
        if not fault.endswith("step-commit:2"):
            await plane.service.killed()
            await until_answered(calls, 100)
            await plane.service.start()
        await plane.until_live(name, 2)
    assert calls.failures == []
    assert calls.versions[-1] == "2"
