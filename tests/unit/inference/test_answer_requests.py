"""A request is answered once, whatever fails on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

import pytest
from tests.support.async_requests import (
    RESPONSES,
    Clock,
    Inline,
    Model,
    Published,
    Table,
    asked,
    failing,
)
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2

from headrace.inference.domain.requests import Cause, Failure, Priority, RequestState
from headrace.inference.inference_forms import InferenceForms
from headrace.inference.use_cases import answer_requests
from headrace.inference.use_cases.answer_requests import AnswerRequests
from headrace.inference.use_cases.request_ports import Asked
from headrace.messaging.events import PROTOBUF

T = TypeVar("T")
MAX_REQUEST_BYTES = 1000
FAULT_POINTS = (
    "inference.after-request-stored",
    "inference.before-request-sent",
    "inference.after-answer-stored",
    "inference.after-answer-published",
)


class Killed(BaseException):
    """The process died here."""


class Service:
    """One process, and what outlives it."""

    def __init__(self) -> None:
        self.table, self.model, self.published, self.clock = Table(), Model(), Published(), Clock()
        self.start()

    def start(self, most_at_once: int = 8) -> None:
        self.answer = AnswerRequests(
            self.table,
            self.model,
            InferenceForms(),
            Inline(),
            self.published,
            self.clock,
            most_at_once=most_at_once,
            max_request_bytes=MAX_REQUEST_BYTES,
        )


@pytest.fixture
def service() -> Service:
    return Service()


async def test_a_request_is_answered_with_the_version_and_the_requests_id(service: Service) -> None:
    ended = await service.answer(asked("r1"))
    assert ended.state is RequestState.ANSWERED
    assert ended.version == "7"
    (record,) = service.published.records
    headers = dict(record.headers)
    assert record.topic == RESPONSES
    assert record.key == "r1"
    assert headers["ce_type"] == b"headrace.inference.response.v1"
    assert headers["ce_requestid"] == b"r1"
    assert headers["ce_requestsource"] == b"tests"
    assert headers["ce_subject"] == b"live"
    assert json.loads(record.value) == {
        "model_name": "live",
        "model_version": "7",
        "id": "r1",
        "outputs": [],
    }


async def test_what_comes_again_is_answered_from_the_store(service: Service) -> None:
    await service.answer(asked("r1"))
    service.start()
    await service.answer(asked("r1"))
    first, second = service.published.records
    assert first == second
    assert service.model.asked == ["r1"]


async def test_what_comes_twice_at_once_is_asked_and_answered_once(service: Service) -> None:
    one, other = await asyncio.gather(service.answer(asked("r1")), service.answer(asked("r1")))
    assert one == other
    assert service.model.asked == ["r1"]
    assert service.published.ids() == ["r1"]


@pytest.mark.parametrize("point", FAULT_POINTS)
async def test_a_process_that_dies_at_any_point_leaves_one_answer(
    service: Service, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(name: str) -> None:
        if name == point:
            raise Killed

    monkeypatch.setattr(answer_requests, "fault_point", die)
    with pytest.raises(Killed):
        await service.answer(asked("r1"))
    monkeypatch.undo()
    service.start()
    await service.answer(asked("r1"))
    assert len(set(map(repr, service.published.records))) == 1
    assert service.table.ended[asked("r1").key].response == service.published.records[-1]


async def test_of_two_that_run_one_request_the_first_to_store_decides(service: Service) -> None:
    service.model.open.clear()
    slow = asyncio.create_task(service.answer(asked("r1")))
    await eventually(_now(lambda: service.model.asked), lambda ids: ids == ["r1"], 5)
    ours = service.answer
    service.start()
    failing_there = Model(failing("INVALID_ARGUMENT"))
    service.answer._calls = failing_there
    there = await service.answer(asked("r1"))
    service.answer = ours
    service.model.open.set()
    assert await slow == there
    assert len(set(map(repr, service.published.records))) == 1


async def test_a_wrong_request_fails_at_once(service: Service) -> None:
    service.model.behave = failing("INVALID_ARGUMENT")
    ended = await service.answer(asked("r1"))
    assert ended.state is RequestState.FAILED
    assert ended.failure == Failure("INVALID_ARGUMENT", "INVALID_ARGUMENT", "INVALID_ARGUMENT it is")
    assert ended.record is not None
    (record,) = service.published.records
    assert dict(record.headers)["ce_type"] == b"headrace.inference.request-failed.v1"
    assert json.loads(record.value)["code"] == "INVALID_ARGUMENT"
    assert service.model.asked == ["r1"]


async def test_a_failing_model_is_asked_as_often_as_the_retries_allow(service: Service) -> None:
    service.model.behave = failing("INTERNAL")
    ended = await service.answer(asked("r1", retries=2))
    assert ended.state is RequestState.FAILED
    assert ended.attempts == 3
    service.model.behave = failing("INTERNAL", times=2)
    assert (await service.answer(asked("r2", retries=2))).state is RequestState.ANSWERED


@pytest.mark.parametrize(("code", "cause"), [("UNAVAILABLE", None), ("RESOURCE_EXHAUSTED", Cause.BUSY)])
async def test_no_room_is_waited_for_whatever_the_retries(
    service: Service, code: str, cause: Cause | None
) -> None:
    service.model.behave = failing(code, times=5, cause=cause)
    ended = await service.answer(asked("r1", retries=0))
    assert ended.state is RequestState.ANSWERED
    assert ended.attempts == 6


@pytest.mark.parametrize(("cause", "attempts"), [(None, 3), (Cause.REQUEST, 1)])
async def test_what_is_exhausted_for_good_is_not_waited_for(
    service: Service, cause: Cause | None, attempts: int
) -> None:
    service.model.behave = failing("RESOURCE_EXHAUSTED", cause=cause)
    ended = await service.answer(asked("r1", retries=2))
    assert (ended.state, ended.attempts) == (RequestState.FAILED, attempts)
    assert ended.failure is not None
    assert ended.failure.code == "RESOURCE_EXHAUSTED"


async def test_what_is_past_its_deadline_is_never_asked(service: Service) -> None:
    ended = await service.answer(asked("r1", seconds=-1))
    assert ended.state is RequestState.EXPIRED
    assert ended.failure is not None
    assert ended.failure.code == "DEADLINE_EXCEEDED"
    assert service.model.asked == []
    assert service.published.ids() == ["r1"]


async def test_a_deadline_that_passes_takes_the_call_back(service: Service) -> None:
    service.model.open.clear()
    running = asyncio.create_task(service.answer(asked("r1", seconds=0.2)))
    await eventually(_now(lambda: service.model.asked), lambda ids: ids == ["r1"], 5)
    ended = await running
    assert ended.state is RequestState.EXPIRED
    assert service.model.cancelled == ["r1"]


async def test_an_interrupted_request_ends_as_it_is_stored(service: Service) -> None:
    service.model.open.clear()
    running = asyncio.create_task(service.answer(asked("r1")))
    await eventually(_now(lambda: service.model.asked), lambda ids: ids == ["r1"], 5)
    service.answer.interrupt(asked("r1").key)
    ended = await running
    assert ended.state is RequestState.CANCELLED
    assert service.model.cancelled == ["r1"]
    # What is not in work is somebody else's.
    service.answer.interrupt(asked("r1").key)


async def test_requests_of_one_order_are_answered_one_after_the_other(service: Service) -> None:
    service.model.behave = failing("INTERNAL", times=1)
    names = [f"r{number}" for number in range(5)]
    await asyncio.gather(*(service.answer(asked(name, order="k")) for name in names))
    assert service.published.ids() == names
    assert service.model.most == 1


async def test_an_order_holds_while_the_database_is_away(service: Service) -> None:
    service.table.away = 7
    names = [f"r{number}" for number in range(5)]
    await asyncio.gather(*(service.answer(asked(name, order="k")) for name in names))
    assert service.published.ids() == names


async def test_a_broker_that_is_away_is_waited_for_and_nothing_is_asked_twice(service: Service) -> None:
    service.published.away = 3
    await service.answer(asked("r1"))
    assert service.published.ids() == ["r1"]
    assert service.model.asked == ["r1"]


async def test_no_more_calls_are_under_way_than_allowed(service: Service) -> None:
    service.start(most_at_once=4)
    await asyncio.gather(*(service.answer(asked(f"r{number}")) for number in range(100)))
    assert service.model.most <= 4
    assert sorted(service.published.ids()) == sorted(f"r{number}" for number in range(100))


async def test_those_who_wait_have_their_turns_by_priority(service: Service) -> None:
    service.start(most_at_once=1)
    service.model.open.clear()
    low = [asyncio.create_task(service.answer(asked(f"l{n}", priority=Priority.LOW))) for n in range(10)]
    await eventually(_now(lambda: service.model.asked), lambda ids: len(ids) == 1, 5)
    high = [asyncio.create_task(service.answer(asked(f"h{n}", priority=Priority.HIGH))) for n in range(5)]
    await eventually(_now(lambda: len(service.table.asked)), lambda count: count == 15, 5)
    service.model.open.set()
    await asyncio.gather(*low, *high)
    last_high = max(service.model.asked.index(f"h{n}") for n in range(5))
    assert last_high < 9


async def test_a_cancelled_request_gives_its_turn_to_the_next(service: Service) -> None:
    service.start(most_at_once=1)
    service.model.open.clear()
    first = asyncio.create_task(service.answer(asked("r1")))
    await eventually(_now(lambda: service.model.asked), lambda ids: ids == ["r1"], 5)
    waiting = asyncio.create_task(service.answer(asked("r2")))
    third = asyncio.create_task(service.answer(asked("r3")))
    await eventually(_now(lambda: len(service.table.asked)), lambda count: count == 3, 5)
    waiting.cancel()
    service.model.open.set()
    await asyncio.gather(first, third)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert service.model.asked == ["r1", "r3"]


# With the five bytes that gRPC puts before a message.
@pytest.mark.parametrize("over", [1000, 1])
async def test_a_request_that_is_too_large_is_not_sent(service: Service, over: int) -> None:
    ended = await service.answer(of_size(MAX_REQUEST_BYTES - 5 + over))
    assert ended.failure is not None
    assert (ended.failure.code, ended.failure.reason) == ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE")
    assert service.model.asked == []


async def test_the_largest_request_is_sent(service: Service) -> None:
    assert (await service.answer(of_size(MAX_REQUEST_BYTES - 5))).state is RequestState.ANSWERED


def of_size(size: int) -> Asked:
    """A request that makes a message of so many bytes."""
    one = asked("r1")
    message = service_pb2.ModelInferRequest(model_name=one.deployment, id="r1")
    message.raw_input_contents.append(bytes(size - message.ByteSize() - 3))
    data = message.SerializeToString()
    assert len(data) == size
    return replace(one, event=replace(one.event, data=data, content_type=PROTOBUF))


async def test_a_claim_that_cannot_be_made_good_fails(service: Service) -> None:
    ended = await service.answer(asked("r1", dataref="file:///elsewhere"))
    assert ended.failure == Failure("INVALID_ARGUMENT", "CLAIM_MISSING", "there is no such object")


def about(subject: str, request_id: str = "r1", *, seconds: float | None = None) -> Asked:
    """A request that names its subject."""
    one = asked(request_id, seconds=seconds)
    data = json.dumps({"inputs": [], "parameters": {"subject": subject}}).encode()
    return replace(one, event=replace(one.event, data=data))


async def test_nobody_is_asked_about_a_subject_that_was_erased_since(service: Service) -> None:
    service.table.subjects_erased.add("c-1")
    for _ in range(2):
        ended = await service.answer(about("c-1"))
        assert ended.failure is not None
        assert (ended.state, ended.failure.reason) == (RequestState.FAILED, "SUBJECT_ERASED")
        assert ended.record is None
    assert (await service.answer(about("c-2", "r2"))).state is RequestState.ANSWERED
    assert service.model.asked == ["r2"]
    assert [key.id for key in service.table.ended] == ["r2"]
    first, second, _ = service.published.records
    assert first == second


async def test_an_answer_about_a_subject_that_is_erased_meanwhile_is_not_told(service: Service) -> None:
    service.model.behave = lambda _request_id, _attempt: service.table.subjects_erased.add("c-1")
    ended = await service.answer(about("c-1"))
    assert ended.failure is not None
    assert ended.failure.reason == "SUBJECT_ERASED"
    (record,) = service.published.records
    assert json.loads(record.value)["reason"] == "SUBJECT_ERASED"


async def test_what_is_kept_to_be_run_again_names_its_subject(service: Service) -> None:
    ended = await service.answer(about("c-1", seconds=-1))
    assert ended.record is not None
    assert ended.subject == "c-1"


async def test_what_nobody_can_read_is_not_kept(service: Service) -> None:
    unreadable = asked("r1")
    ended = await service.answer(replace(unreadable, event=replace(unreadable.event, data=b"{")))
    assert (ended.state, ended.record) == (RequestState.FAILED, None)
    # Its payload lies elsewhere, and what is kept says nothing of it.
    claimed = asked("r2", dataref="file:///elsewhere")
    ended = await service.answer(replace(claimed, event=replace(claimed.event, data=b"")))
    assert (ended.state, ended.record is None) == (RequestState.FAILED, False)


async def test_what_is_no_outage_is_raised(service: Service) -> None:
    def broken(request_id: str, attempt: int) -> None:
        raise RuntimeError("a mistake of ours")

    service.model.behave = broken
    with pytest.raises(RuntimeError):
        await service.answer(asked("r1"))
    service.model.behave = failing("NONE", times=0)
    assert (await service.answer(asked("r1"))).state is RequestState.ANSWERED


def _now(look: Callable[[], T]) -> Callable[[], Awaitable[T]]:
    async def found() -> T:
        return look()

    return found
