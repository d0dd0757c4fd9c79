"""Quality by kind of request, through Envoy, Triton, the broker and PostgreSQL; and feedback by RPC."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import Plane, ask, post
from tests.component.inference.test_data_plane import send_feedback
from tests.component.inference.test_requests import request, send
from tests.support.waiting import eventually
from typer.testing import CliRunner

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.cli.main import app
from headrace.errors import InvalidArgument, NotFound
from headrace.rpc.convert import to_timestamp

pytestmark = pytest.mark.broker

LONGEST = "ü" * 32
# What the version that tests promote answers to rows of ones.
ANSWER = 0


async def quality(plane: Plane, name: str, **asked: int) -> api.Quality:
    return await plane.stub.GetQuality(api.GetQualityRequest(deployment=name, **asked))


async def submit(plane: Plane, name: str, *labels: api.TrueLabel) -> api.SubmitFeedbackResponse:
    return await plane.stub.SubmitFeedback(api.SubmitFeedbackRequest(deployment=name, labels=labels))


async def deploy(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)


async def ask_each(client: triton.InferenceServerClient, name: str, asked: dict[str, str]) -> None:
    """One request for each id, of that segment."""
    await asyncio.gather(
        *(
            ask(client, name, request_id=request_id, parameters={"segment": segment})
            for request_id, segment in asked.items()
        )
    )


async def test_a_request_says_its_segment_over_grpc_rest_and_kafka(plane: Plane, name: str) -> None:
    await deploy(plane, name)
    wanted: dict[str, str] = {}
    async with plane.client() as client:
        for request_id, given, segment in (
            ("text", "ward=3", "ward=3"),
            ("longest", LONGEST, LONGEST),
            ("too-long", LONGEST + "x", "?"),
            ("number", 3, "?"),
            ("escape", "ward\x1b[2J", "?"),
            ("empty", "", ""),
        ):
            await ask(client, name, request_id=request_id, parameters={"segment": given})
            wanted[request_id] = segment
        await ask(client, name, request_id="none")
    row = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
    for request_id, given, segment in (
        ("rest", "ward=4", "ward=4"),
        ("rest-number", 4, "?"),
    ):
        document = {"id": request_id, "parameters": {"segment": given}, "inputs": [row]}
        status, _ = await asyncio.to_thread(post, plane, f"/v2/models/{name}/infer", document)
        assert status == 200
        wanted[request_id] = segment
    # At one moment, so that some of them are asked in one call.
    by_kafka = {f"{name}-kafka-{number}": f"road={number % 2}" for number in range(8)}
    await send(plane, *(request(name, it, segment=segment) for it, segment in by_kafka.items()))
    wanted |= by_kafka | {"none": ""}
    logged = await plane.until_logged(name, set(wanted))
    assert {prediction.id: prediction.segment for prediction in logged.values()} == wanted

    found = await quality(plane, name)
    counts = {one.segment: one.prediction_count for one in found.segments}
    assert counts == {"?": 4, "road=0": 4, "road=1": 4, "": 2, "ward=3": 1, "ward=4": 1, LONGEST: 1}
    assert [one.prediction_count for one in found.segments] == sorted(counts.values(), reverse=True)
    assert found.segment_count == 6


async def test_a_segment_that_is_answered_worse_is_seen_until_its_data_is_erased(
    plane: Plane, name: str
) -> None:
    await deploy(plane, name)
    good, bad = ({f"{kind}-{number}": kind for number in range(40)} for kind in ("ward=1", "ward=2"))
    few = {f"few-{number}": "ward=3" for number in range(5)}
    async with plane.client() as client:
        await ask_each(client, name, good | few)
        for request_id in bad:
            await ask(
                client, name, request_id=request_id, parameters={"segment": "ward=2", "subject": "patient"}
            )
    await plane.until_logged(name, set(good | bad | few))
    # Half of them by the topic, half by RPC.
    labels = dict.fromkeys(good | few, ANSWER) | {it: (ANSWER + place) % 2 for place, it in enumerate(bad)}
    ids = list(labels)
    await send_feedback(plane, name, {it: labels[it] for it in ids[::2]})
    told = await submit(
        plane, name, *(api.TrueLabel(prediction_id=it, number=labels[it]) for it in ids[1::2])
    )
    assert (told.label_count, told.joined_count) == (len(ids[1::2]), len(ids[1::2]))

    found = await eventually(lambda: quality(plane, name), lambda it: it.feedback_count == len(labels))
    by_segment = {one.segment: one for one in found.segments}
    assert {it: one.metrics["accuracy"] for it, one in by_segment.items()} == {
        "ward=1": 1.0,
        "ward=2": 0.5,
        "ward=3": 1.0,
    }
    [one_version] = by_segment["ward=2"].versions
    assert (one_version.version, one_version.feedback_count) == (1, 40)
    gap = next(gap for gap in found.gaps if gap.metric == "accuracy")
    # That of ward=3 is made of too few labels.
    assert (gap.best, gap.worst, gap.value, gap.certain) == ("ward=1", "ward=2", 0.5, True)
    assert 0 < gap.low < 0.5 < gap.high < 1
    assert not (await quality(plane, name, min_labels=41)).gaps
    [largest, other] = (await quality(plane, name, max_segments=1)).segments
    assert (largest.prediction_count, largest.other) == (40, False)
    assert (other.segment, other.prediction_count, other.other) == ("", 45, True)
    assert not (await quality(plane, name, version=7)).versions

    request = api.ErasePredictionsRequest(erasure=name, dataset="any", subject="patient")
    assert (await plane.stub.ErasePredictions(request)).prediction_count == len(bad)
    left = await quality(plane, name)
    assert {one.segment: one.feedback_count for one in left.segments} == {"ward=1": 40, "ward=3": 5}


async def test_commands_ask_label_and_show_quality(plane: Plane, name: str) -> None:
    await deploy(plane, name)
    env = {
        "HEADRACE_INFERENCE_PROTOCOL_TARGET": plane.address,
        "HEADRACE_INFERENCE_TARGET": plane.service.target,
    }

    async def headrace(*words: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, app, words, env=env)
        assert result.exit_code == 0, result.output
        return result.stdout

    asked = json.loads(
        await headrace("predict", name, "-d", "[[1, 1, 1]]", "--segment", "ward=9", "-o", "json")
    )
    await plane.until_logged(name, {asked["id"]})
    assert await headrace("feedback", name, f"{asked['id']}={ANSWER}", "soon=1") == (
        "2 labels stored: 1 joined, 1 waiting for predictions that are not in the log yet\n"
    )
    shown = (await headrace("quality", name, "--by", "segment")).splitlines()
    assert shown[0] == f"{name}  1 predictions, 1 with a true label"
    assert shown[2].split() == ["ward=9", "1", "1", "1.000", "0.207-1.000"]
    assert shown[3] == "no gap: fewer than two segments have 30 labels"


async def test_feedback_by_rpc_may_come_first_again_and_in_any_order(plane: Plane, name: str) -> None:
    await deploy(plane, name)
    known = datetime(2026, 1, 2, tzinfo=UTC)

    def label(number: float, *, later: int = 0) -> api.TrueLabel:
        time = to_timestamp(known + timedelta(seconds=later))
        return api.TrueLabel(prediction_id="mine", number=number, time=time)

    told = await submit(plane, name, label(ANSWER, later=1))
    assert (told.label_count, told.joined_count) == (1, 0)
    async with plane.client() as client:
        await ask(client, name, request_id="mine")
    await plane.until_logged(name, {"mine"})

    async def accuracy() -> float:
        return (await quality(plane, name)).metrics["accuracy"]

    assert await accuracy() == 1
    # An older one, and one of the same moment, change nothing; a newer one does, also as a text.
    for given in (label(1 - ANSWER), label(1 - ANSWER, later=1)):
        assert (await submit(plane, name, given, given)).joined_count == 1
        assert await accuracy() == 1
    await submit(plane, name, api.TrueLabel(prediction_id="mine", text=str(1 - ANSWER)))
    assert await accuracy() == 0
    assert (await quality(plane, name)).feedback_count == 1


async def test_feedback_that_is_wrong_is_told_where_and_none_of_it_is_stored(plane: Plane, name: str) -> None:
    await deploy(plane, name)
    async with plane.client() as client:
        await ask(client, name, request_id="mine")
    await plane.until_logged(name, {"mine"})
    good = api.TrueLabel(prediction_id="mine", number=1)
    with pytest.raises(InvalidArgument) as raised:
        await submit(
            plane,
            name,
            good,
            api.TrueLabel(prediction_id="mine"),
            api.TrueLabel(number=1),
            api.TrueLabel(prediction_id="mine", number=float("nan")),
            api.TrueLabel(prediction_id="x" * 257, text="a"),
            api.TrueLabel(prediction_id="mine", text="a\0b"),
        )
    assert raised.value.reason == "INVALID_FEEDBACK"
    assert [violation.field for violation in raised.value.fields] == [
        "labels[1].label",
        "labels[2].prediction_id",
        "labels[3].number",
        "labels[4].prediction_id",
        "labels[5].text",
    ]
    timeless = api.TrueLabel(prediction_id="mine", number=1)
    timeless.time.seconds = 1 << 62
    with pytest.raises(InvalidArgument, match=r"labels\[1\].time must be") as raised:
        await submit(plane, name, good, timeless)
    assert raised.value.reason == "INVALID_FEEDBACK"
    with pytest.raises(InvalidArgument):
        await submit(plane, name)
    with pytest.raises(InvalidArgument):
        await submit(plane, name, *[good] * 1001)
    with pytest.raises(NotFound) as unknown:
        await submit(plane, "nobody", good)
    assert unknown.value.reason == "DEPLOYMENT_NOT_FOUND"
    assert (await quality(plane, name)).feedback_count == 0
