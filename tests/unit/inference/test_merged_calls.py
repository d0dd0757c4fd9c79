"""Small requests that are asked in one call have the answers that they would have had alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from headrace.inference.merged_calls import MERGED_PARAMETER, MergedCalls
from headrace.inference.use_cases.request_ports import CallFailed


class Plane:
    """A model that answers each row with its sum and its number of calls; counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[service_pb2.ModelInferRequest] = []
        self.seconds: list[float | None] = []
        self.failure: CallFailed | None = None
        self.datatype = "FP32"
        self.names = False
        self.open = asyncio.Event()
        self.open.set()
        self.cancelled = 0

    async def infer(self, request: bytes, *, seconds: float | None, traceparent: str) -> bytes:
        message = service_pb2.ModelInferRequest.FromString(request)
        self.asked.append(message)
        self.seconds.append(seconds)
        try:
            async with asyncio.timeout(seconds):
                await self.open.wait()
        except TimeoutError as error:
            raise CallFailed("DEADLINE_EXCEEDED", "the deadline passed") from error
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        values = np.frombuffer(message.raw_input_contents[0], "<f4").reshape(message.inputs[0].shape)
        if self.failure is not None and (len(values) > 1 or values[0, 0] < 0):
            raise self.failure
        answer = service_pb2.ModelInferResponse(
            model_name=message.model_name, model_version="7", id=message.id
        )
        answer.outputs.add(name="sum", datatype=self.datatype, shape=[len(values), 1])
        answer.raw_output_contents.append(values.sum(axis=1, dtype="<f4").tobytes())
        if self.names:
            answer.outputs.add(name="names", datatype="BYTES", shape=values.shape)
            texts = np.array([f"{value:g}".encode() for value in values.flat], object)
            answer.raw_output_contents.append(serialize_byte_tensor(texts).item())
        return bytes(answer.SerializeToString())


def request(
    name: str,
    *rows: Sequence[float],
    deployment: str = "live",
    subject: str = "",
    version: str = "",
    segment: str | int | None = None,
) -> bytes:
    values = np.array(rows, "<f4")
    message = service_pb2.ModelInferRequest(model_name=deployment, id=name, model_version=version)
    message.inputs.add(name="features", datatype="FP32", shape=values.shape)
    message.raw_input_contents.append(values.tobytes())
    if subject:
        message.parameters["subject"].string_param = subject
    if isinstance(segment, str):
        message.parameters["segment"].string_param = segment
    elif segment is not None:
        message.parameters["segment"].int64_param = segment
    return bytes(message.SerializeToString())


async def asked(
    plane: Plane, *requests: bytes, mergeable: bool = True, most_rows: int = 32, deployments: int = 64
) -> list[service_pb2.ModelInferResponse]:
    calls = MergedCalls(
        plane, most_rows=most_rows, rows_of=lambda _: deployments, mergeable=lambda _: mergeable
    )
    answers = await asyncio.gather(*(calls.infer(it, seconds=None, traceparent="") for it in requests))
    return [service_pb2.ModelInferResponse.FromString(answer) for answer in answers]


def sums(response: service_pb2.ModelInferResponse) -> list[float]:
    (output,) = response.outputs
    values = np.frombuffer(response.raw_output_contents[0], "<f4")
    assert list(output.shape) == [len(values), 1]
    return [float(value) for value in values]


def names(response: service_pb2.ModelInferResponse) -> list[str]:
    texts = deserialize_bytes_tensor(response.raw_output_contents[1])
    assert response.outputs[1].shape[0] * 2 == len(texts)
    return [text.decode() for text in texts]


async def test_each_has_the_rows_of_its_own_and_its_id() -> None:
    plane = Plane()
    found = await asked(plane, request("a", [1, 2]), request("b", [3, 4], [5, 6]), request("c", [7, 8]))
    assert len(plane.asked) == 1
    assert [(answer.id, answer.model_version, sums(answer)) for answer in found] == [
        ("a", "7", [3]),
        ("b", "7", [7, 11]),
        ("c", "7", [15]),
    ]


async def test_each_has_the_texts_of_its_own_rows() -> None:
    plane = Plane()
    plane.names = True
    found = await asked(plane, request("a", [1, 2]), request("b", [10, 4], [5, 6]))
    assert len(plane.asked) == 1
    assert [names(answer) for answer in found] == [["1", "2"], ["10", "4", "5", "6"]]


async def test_the_log_is_told_what_each_was() -> None:
    plane = Plane()
    await asked(plane, request("a", [1, 2], subject="c-1", segment="ward=3"), request("b", [3, 4], [5, 6]))
    (merged,) = plane.asked
    told = json.loads(merged.parameters[MERGED_PARAMETER].string_param)
    assert [(name, rows, json.loads(own)) for name, rows, own in told] == [
        ("a", 1, {"subject": "c-1", "segment": "ward=3"}),
        ("b", 2, {}),
    ]


async def test_a_segment_that_is_no_text_is_told_as_it_is_by_a_call_of_its_own() -> None:
    plane = Plane()
    await asked(plane, request("a", [1, 2], segment=3), request("b", [3, 4]), request("c", [3, 4]))
    assert sorted(message.inputs[0].shape[0] for message in plane.asked) == [1, 2]
    alone = next(message for message in plane.asked if message.id == "a")
    assert alone.parameters["segment"].int64_param == 3


@pytest.mark.parametrize(("most_rows", "deployments"), [(4, 64), (32, 4)])
async def test_no_call_has_more_rows_than_it_may(most_rows: int, deployments: int) -> None:
    plane = Plane()
    requests = [request(str(number), [number, 0]) for number in range(10)]
    found = await asked(plane, *requests, most_rows=most_rows, deployments=deployments)
    assert [message.inputs[0].shape[0] for message in plane.asked] == [4, 4, 2]
    assert [sums(answer) for answer in found] == [[number] for number in range(10)]


async def test_what_differs_is_not_asked_together() -> None:
    plane = Plane()
    short = service_pb2.ModelInferRequest.FromString(request("d", [1, 2]))
    short.raw_input_contents[0] = short.raw_input_contents[0][:4]
    short.inputs[0].shape[1] = 1
    others = [
        request("a", [1, 2]),
        request("b", [1, 2], deployment="another"),
        request("c", [1, 2], version="3"),
        request("c2", [1, 2], version="3"),
        short.SerializeToString(),
    ]
    found = await asked(plane, *others)
    assert len(plane.asked) == 5
    assert [sums(answer) for answer in found] == [[3], [3], [3], [3], [1]]


async def test_where_versions_share_the_traffic_each_is_asked_alone() -> None:
    plane = Plane()
    await asked(plane, request("a", [1, 2]), request("b", [3, 4]), mergeable=False)
    assert [message.id for message in plane.asked] == ["a", "b"]


async def test_two_whose_bytes_are_right_only_together_are_asked_alone() -> None:
    def cut(name: str, values: list[float]) -> bytes:
        message = service_pb2.ModelInferRequest.FromString(request(name, [1, 2]))
        message.raw_input_contents[0] = np.array(values, "<f4").tobytes()
        return bytes(message.SerializeToString())

    plane = Plane()
    with pytest.raises(ValueError, match="reshape"):
        await asked(plane, cut("a", [1]), cut("b", [2, 3, 4]))
    assert {message.id for message in plane.asked} == {"a", "b"}


async def test_what_is_wrong_with_one_is_not_its_neighbours_failure() -> None:
    plane = Plane()
    plane.failure = CallFailed("INVALID_ARGUMENT", "no negative numbers")
    calls = MergedCalls(plane, most_rows=32, rows_of=lambda _: 64, mergeable=lambda _: True)
    bad, good = await asyncio.gather(
        *(
            calls.infer(it, seconds=None, traceparent="")
            for it in (request("a", [-1, 2]), request("b", [3, 4]))
        ),
        return_exceptions=True,
    )
    assert isinstance(bad, CallFailed)
    assert isinstance(good, bytes)
    assert sums(service_pb2.ModelInferResponse.FromString(good)) == [7]
    assert len(plane.asked) == 3


async def test_no_room_for_all_is_no_room_for_each() -> None:
    plane = Plane()
    plane.failure = CallFailed("UNAVAILABLE", "no room")
    with pytest.raises(CallFailed, match="no room"):
        await asked(plane, request("a", [1, 2]), request("b", [3, 4]))
    assert len(plane.asked) == 1


async def test_answers_that_cannot_be_cut_are_asked_for_alone_from_then_on() -> None:
    plane = Plane()
    plane.datatype = "BYTES"
    calls = MergedCalls(plane, most_rows=32, rows_of=lambda _: 64, mergeable=lambda _: True)
    for expected in (3, 5):
        await asyncio.gather(
            *(calls.infer(request(name, [1, 2]), seconds=None, traceparent="") for name in "ab")
        )
        assert len(plane.asked) == expected


def calls_of(plane: Plane) -> MergedCalls:
    return MergedCalls(plane, most_rows=32, rows_of=lambda _: 64, mergeable=lambda _: True)


async def within(calls: MergedCalls, **seconds: float | None) -> dict[str, bytes | BaseException]:
    """Ask at once, each with its deadline; what came of each."""
    outcomes = await asyncio.gather(
        *(calls.infer(request(name, [1, 2]), seconds=left, traceparent="") for name, left in seconds.items()),
        return_exceptions=True,
    )
    return dict(zip(seconds, outcomes, strict=True))


async def test_whose_deadlines_are_far_are_asked_together() -> None:
    plane = Plane()
    await within(calls_of(plane), a=None, b=40, c=3600)
    assert [message.inputs[0].shape[0] for message in plane.asked] == [3]
    (seconds,) = plane.seconds
    assert seconds is not None
    assert seconds <= 40


async def test_whose_deadline_is_near_is_not_asked_with_those_who_have_time() -> None:
    plane = Plane()
    await within(calls_of(plane), a=None, near=1.1, b=None, as_near=1.9)
    assert sorted(message.inputs[0].shape[0] for message in plane.asked) == [2, 2]
    assert sorted(seconds is None for seconds in plane.seconds) == [False, True]
    (near,) = (seconds for seconds in plane.seconds if seconds is not None)
    assert near <= 1.1


async def test_when_the_earliest_deadline_passes_only_those_who_have_time_left_are_asked_again() -> None:
    plane = Plane()
    plane.open.clear()
    # Alike, so that they are asked together, and the first one's passes.
    asking = asyncio.create_task(within(calls_of(plane), short=4.01, long=7.9))
    # By the loop's clock, which nothing else reads here.
    loop = asyncio.get_running_loop()
    now, skipped = loop.time, 0.0
    loop.time = lambda: now() + skipped  # type: ignore[method-assign]
    try:
        while not plane.asked:
            await asyncio.sleep(0)
        skipped = 4.1
        while len(plane.asked) < 2:
            await asyncio.sleep(0)
        plane.open.set()
        outcomes = await asking
    finally:
        del loop.time
    assert [message.inputs[0].shape[0] for message in plane.asked] == [2, 1]
    assert plane.asked[1].id == "long"
    assert plane.seconds[1] is not None
    assert plane.seconds[1] < 3.9
    assert isinstance(outcomes["long"], bytes)
    assert isinstance(outcomes["short"], CallFailed)
    assert outcomes["short"].code == "DEADLINE_EXCEEDED"


async def test_those_that_are_asked_again_are_taken_back_each_by_itself() -> None:
    plane = Plane()
    plane.failure = CallFailed("INTERNAL", "the model failed")
    calls = calls_of(plane)
    one, other = (
        asyncio.create_task(calls.infer(request(name, [1, 2]), seconds=None, traceparent="")) for name in "ab"
    )
    while not plane.asked:
        await asyncio.sleep(0)
    plane.open.clear()
    while len(plane.asked) < 3:
        await asyncio.sleep(0)
    one.cancel()
    while not plane.cancelled:
        await asyncio.sleep(0)
    plane.open.set()
    assert isinstance(await other, bytes)


async def test_a_call_that_nobody_waits_for_any_more_is_taken_back() -> None:
    plane = Plane()
    plane.open.clear()
    calls = MergedCalls(plane, most_rows=32, rows_of=lambda _: 64, mergeable=lambda _: True)
    waiting = [
        asyncio.create_task(calls.infer(request(name, [1, 2]), seconds=None, traceparent="")) for name in "ab"
    ]
    while not plane.asked:
        await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    assert plane.cancelled == 0
    waiting[1].cancel()
    await asyncio.gather(waiting[1], return_exceptions=True)
    while not plane.cancelled:
        await asyncio.sleep(0)
    assert len(plane.asked) == 1
