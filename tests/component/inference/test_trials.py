"""Who is asked and who gets which answer while a version is tried: shadows, sticky callers, an audience."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
import numpy as np
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import DEADLINE, Plane, ask
from tests.support.models import classifier, classifier_signature
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling

# Versions of odd numbers answer otherwise than those of even ones (`Plane.promote`).
ROWS = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}


def shadowed(share: int = 100, *, max_share: float = 0.0, min_samples: int = 5) -> scheduling.RolloutSpec:
    """A shadow that is judged by its disagreement until enough requests were compared."""
    spec = scheduling.RolloutSpec()
    spec.shadow.share = share
    spec.shadow.hold.FromMilliseconds(1)
    spec.analysis.disagreement.max_share = max_share
    spec.analysis.min_samples = min_samples
    spec.analysis.longest_hold.FromSeconds(int(2 * DEADLINE))
    return spec


async def until_tried(plane: Plane, name: str, state: api.RolloutState.ValueType) -> api.Deployment:
    """Wait until version 2's rollout is in that state, at the data plane too."""
    return await plane.until(
        name, lambda d: d.rollout.to_version == 2 and d.rollout.state == state and d.ready
    )


async def until_ended(plane: Plane, name: str, client: triton.InferenceServerClient) -> api.Deployment:
    """Ask until version 2's rollout has ended; every answer is version 1's."""

    async def asked() -> api.Deployment:
        assert (await ask(client, name)).get_response().model_version == "1"
        return await plane.get(name)

    return await eventually(asked, lambda found: bool(found.rollout.end_time.seconds), DEADLINE)


async def logged(plane: Plane, name: str) -> dict[tuple[int, bool], int]:
    """How many predictions the log has, by version and whether a shadow made them."""
    listed = await plane.stub.ListPredictions(api.ListPredictionsRequest(deployment=name, page_size=1000))
    return dict(Counter((prediction.version, prediction.shadow) for prediction in listed.predictions))


async def test_a_shadow_that_answers_otherwise_is_sent_back_and_answered_nobody(
    plane: Plane, name: str
) -> None:
    await plane.deploy(name, hold=DEADLINE, rollout=shadowed(max_share=0.2))
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await until_tried(plane, name, api.ROLLOUT_STATE_SHADOWING)
    async with plane.client() as client:
        back = await until_ended(plane, name, client)
    assert back.rollout.state == api.ROLLOUT_STATE_ROLLED_BACK
    assert back.rollout.message.startswith("version 2 answered 100.0% of ")
    assert [(t.version, t.weight) for t in back.traffic] == [(1, 100)]
    found = await logged(plane, name)
    assert set(found) == {(1, False), (2, True)}
    quality = await plane.stub.GetQuality(api.GetQualityRequest(deployment=name))
    assert [version.version for version in quality.versions] == [1]


async def test_a_shadow_that_answers_alike_gets_its_first_share(plane: Plane, name: str) -> None:
    await plane.deploy(name, steps=(1, 100), hold=2 * DEADLINE, rollout=shadowed(max_share=0.2))
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 3)
    async with plane.client() as client:

        async def asked() -> api.Deployment:
            await ask(client, name)
            return await plane.get(name)

        await eventually(asked, lambda d: d.rollout.state == api.ROLLOUT_STATE_PROGRESSING, DEADLINE)
    shares = {t.version: t.weight for t in (await plane.get(name)).traffic}
    assert shares == {1: 99, 3: 1}


async def test_a_version_whose_dataset_has_another_class_before_the_others_answers_as_the_old_one(
    plane: Plane, name: str
) -> None:
    plan = shadowed(max_share=0.2)
    plan.analysis.drift.max_shift = 0.2
    await plane.deploy(name, steps=(1, 100), hold=2 * DEADLINE, rollout=plan)
    await plane.promote(name, 2, classifier(0.5), signature=classifier_signature("cat", "dog"))
    await plane.until_live(name, 2)
    grown = classifier_signature("ant", "cat", "dog")
    await plane.promote(name, 3, classifier(0.5, more=1), signature=grown)
    async with plane.client() as client:

        async def asked() -> api.Deployment:
            assert (await ask(client, name)).as_numpy("class").item() == b"cat"
            return await plane.get(name)

        tried = await eventually(
            asked,
            lambda d: (
                d.rollout.to_version == 3
                and d.rollout.state not in (api.ROLLOUT_STATE_LOADING, api.ROLLOUT_STATE_SHADOWING)
            ),
            DEADLINE,
        )
        assert tried.rollout.state == api.ROLLOUT_STATE_PROGRESSING, tried.rollout.message
        old, new = [await ask(client, name, version=version) for version in ("2", "3")]
    assert [answer.as_numpy("label").item() for answer in (old, new)] == [0, 1]
    assert [answer.as_numpy("probabilities").shape for answer in (old, new)] == [(1, 2), (1, 3)]
    assert [answer.as_numpy("class").item() for answer in (old, new)] == [b"cat", b"cat"]


async def test_rest_requests_are_mirrored_and_compared_without_an_id(plane: Plane, name: str) -> None:
    await plane.deploy(name, hold=DEADLINE, rollout=shadowed(max_share=0.2))
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await until_tried(plane, name, api.ROLLOUT_STATE_SHADOWING)
    async with httpx.AsyncClient(base_url=f"http://{plane.address}") as client:

        async def asked() -> api.Deployment:
            answer = await client.post(f"/v2/models/{name}/infer", json={"inputs": [ROWS]})
            assert answer.status_code == 200
            assert answer.json()["model_version"] == "1"
            return await plane.get(name)

        back = await eventually(asked, lambda d: bool(d.rollout.end_time.seconds), DEADLINE)
    assert back.rollout.message.startswith("version 2 answered 100.0% of ")


async def test_a_large_request_is_mirrored_whole(plane: Plane, name: str) -> None:
    # No more than the shared data plane takes: a mebibyte.
    rows = 80_000
    await plane.deploy(name, hold=DEADLINE, rollout=shadowed())
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await until_tried(plane, name, api.ROLLOUT_STATE_SHADOWING)
    async with plane.client() as client:
        for _ in range(3):
            tensor = triton.InferInput("features", [64, 3], "FP32")
            tensor.set_data_from_numpy(np.ones((64, 3), dtype=np.float32))
            padding = {"padding": "x" * (rows * 12)}
            answer = await client.infer(name, [tensor], parameters=padding, client_timeout=10)
            assert answer.get_response().model_version == "1"
    await eventually(lambda: logged(plane, name), lambda found: found.get((2, True)) == 3, DEADLINE)


async def test_a_caller_cannot_have_itself_mirrored_or_left_out_of_the_log(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    headers = {
        "x-headrace-mirror-cluster": "triton-grpc-mirror",
        "x-headrace-shadow-version": "1",
        "x-headrace-mirror-id": "mine",
    }
    async with plane.client() as client:
        await ask(client, name, headers=headers, request_id="one")
        # Behind it: had the first been mirrored, its shadow's entry would be there by then.
        await ask(client, name, request_id="two")
    await plane.until_logged(name, {"one", "two"})
    assert await logged(plane, name) == {(1, False): 2}


async def test_a_share_of_the_requests_is_mirrored(plane: Plane, name: str) -> None:
    requests = 400
    await plane.deploy(name, hold=DEADLINE, rollout=shadowed(25, min_samples=10 * requests))
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await until_tried(plane, name, api.ROLLOUT_STATE_SHADOWING)
    async with plane.client() as client:
        for first in range(0, requests, 20):
            await asyncio.gather(*(ask(client, name, request_id=str(first + number)) for number in range(20)))
    # Five standard deviations around a quarter are 43.
    found = await eventually(
        lambda: logged(plane, name),
        lambda found: found.get((1, False)) == requests and found.get((2, True), 0) >= 57,
        DEADLINE,
    )
    assert found[2, True] <= 143


async def test_a_caller_stays_on_its_version_and_on_the_new_one_as_its_share_grows(
    plane: Plane, name: str
) -> None:
    spec = scheduling.RolloutSpec()
    spec.sticky.header = "x-user-id"
    # A step without so many answers is not left before the longest hold is over.
    spec.analysis.min_samples = 100
    spec.analysis.longest_hold.FromSeconds(int(2 * DEADLINE))
    await plane.deploy(name, steps=(20, 60, 100), hold=2 * DEADLINE, rollout=spec)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await until_tried(plane, name, api.ROLLOUT_STATE_PROGRESSING)
    async with plane.client() as client:

        async def versions() -> dict[str, str]:
            users = [f"user-{number}" for number in range(300)]
            answers = await asyncio.gather(*(ask(client, name, headers={"x-user-id": u}) for u in users))
            return {
                user: answer.get_response().model_version for user, answer in zip(users, answers, strict=True)
            }

        at_20 = await versions()
        assert await versions() == at_20
        assert await versions() == at_20
        await plane.deploy(name, steps=(20, 60, 100), rollout=spec)
        await plane.until(name, lambda d: d.rollout.weight == 60)
        # Nobody has asked in this step yet.
        await plane.deploy(name, steps=(20, 60, 100), hold=2 * DEADLINE, rollout=spec)
        await plane.until(name, lambda d: d.rollout.weight == 60 and d.ready)
        at_60 = await versions()
    new = {user for user, version in at_20.items() if version == "2"}
    assert new <= {user for user, version in at_60.items() if version == "2"}
    # Five standard deviations around 60 and 180.
    assert 25 <= len(new) <= 95
    assert 137 <= sum(version == "2" for version in at_60.values()) <= 223


async def test_an_audience_gets_the_new_version_and_nobody_else(plane: Plane, name: str) -> None:
    spec = scheduling.RolloutSpec()
    spec.audience.header = "x-cohort"
    spec.audience.values.extend(["beta", "staff"])
    await plane.deploy(name, steps=(0, 100), hold=2 * DEADLINE, rollout=spec)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    await until_tried(plane, name, api.ROLLOUT_STATE_PROGRESSING)
    async with plane.client() as client:
        for headers, version in (
            ({"x-cohort": "beta"}, "2"),
            ({"x-cohort": "staff"}, "2"),
            ({"x-cohort": "customers"}, "1"),
            (None, "1"),
        ):
            answers = [await ask(client, name, headers=headers) for _ in range(20)]
            assert {answer.get_response().model_version for answer in answers} == {version}
