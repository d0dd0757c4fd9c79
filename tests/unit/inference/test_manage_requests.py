"""Operators look at requests, end them, and have them run or answered again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.support.async_requests import (
    NOW,
    Clock,
    Inline,
    Model,
    Published,
    Table,
    asked,
    failing,
)
from tests.support.waiting import eventually

from headrace.errors import FailedPrecondition, NotFound
from headrace.inference.domain.requests import RequestState
from headrace.inference.inference_forms import InferenceForms
from headrace.inference.use_cases.answer_requests import AnswerRequests
from headrace.inference.use_cases.manage_requests import ForgetRequests, ManageRequests
from headrace.inference.use_cases.responses import ResponseWriter


class Service:
    """The use cases with everything behind them in memory."""

    def __init__(self) -> None:
        self.table, self.model, self.published, self.clock = Table(), Model(), Published(), Clock()
        self.answer = AnswerRequests(
            self.table,
            self.model,
            InferenceForms(),
            Inline(),
            self.published,
            self.clock,
            most_at_once=8,
            max_request_bytes=1000,
        )
        self.manage = ManageRequests(
            self.table,
            ResponseWriter(InferenceForms(), Inline()),
            self.published,
            self.clock,
            self.answer.interrupt,
        )


@pytest.fixture
def service() -> Service:
    return Service()


async def test_a_cancelled_request_is_taken_back_and_told_once(service: Service) -> None:
    service.model.open.clear()
    running = asyncio.create_task(service.answer(asked("r1")))

    async def sent() -> list[str]:
        return service.model.asked

    await eventually(sent, lambda ids: ids == ["r1"])
    assert (await service.manage.cancel("r1", "")).state is RequestState.CANCELLED
    assert (await running).state is RequestState.CANCELLED
    assert service.model.cancelled == ["r1"]
    assert service.published.ids() == ["r1"]


async def test_what_has_ended_cannot_be_cancelled(service: Service) -> None:
    await service.answer(asked("r1"))
    with pytest.raises(FailedPrecondition) as raised:
        await service.manage.cancel("r1", "")
    assert raised.value.reason == "REQUEST_ENDED"
    with pytest.raises(NotFound):
        await service.manage.cancel("r2", "")


async def test_an_answer_is_published_again_as_it_is_stored(service: Service) -> None:
    await service.answer(asked("r1"))
    await service.manage.replay("r1", "tests", None)
    first, second = service.published.records
    assert first == second
    assert service.model.asked == ["r1"]


async def test_a_failed_request_is_run_again_and_its_answer_is_news(service: Service) -> None:
    service.model.behave = failing("INVALID_ARGUMENT", times=1)
    await service.answer(asked("r1"))
    replayed = await service.manage.replay("r1", "", timedelta(seconds=5))
    assert (replayed.state, replayed.replays) == (RequestState.RECEIVED, 1)
    assert service.table.sent_again == [asked("r1").key]
    assert (await service.answer(asked("r1"))).state is RequestState.ANSWERED
    failed, answered = (dict(record.headers)["ce_id"] for record in service.published.records)
    assert failed != answered


async def test_a_replayed_request_has_the_replays_deadline_and_not_its_records(service: Service) -> None:
    late = asked("r1", seconds=-1)
    assert (await service.answer(late)).state is RequestState.EXPIRED
    await service.manage.replay("r1", "", timedelta(seconds=5))
    # Its first record, read again before the new one is.
    assert (await service.answer(late)).state is RequestState.ANSWERED


async def test_what_waits_cannot_be_replayed(service: Service) -> None:
    await service.table.receive([asked("r1")])
    with pytest.raises(FailedPrecondition) as raised:
        await service.manage.replay("r1", "", None)
    assert raised.value.reason == "REQUEST_NOT_ENDED"
    assert "cancel it" in raised.value.message
    # Whoever has it in work has not noticed.
    await service.manage.cancel("r1", "")
    with pytest.raises(FailedPrecondition, match="try again in a second"):
        await service.manage.replay("r1", "", None)


async def test_what_nobody_can_read_cannot_be_run_again(service: Service) -> None:
    await service.answer(replace(asked("r1"), event=replace(asked("r1").event, data=b"{")))
    with pytest.raises(FailedPrecondition) as raised:
        await service.manage.replay("r1", "", None)
    assert raised.value.reason == "REQUEST_UNREADABLE"


async def test_only_what_is_old_and_has_ended_is_forgotten(service: Service) -> None:
    await service.answer(asked("r1"))
    await service.table.receive([asked("r2")])
    forget = ForgetRequests(service.table, service.clock, timedelta(hours=1))
    assert await forget() == 0
    service.clock.now = NOW + timedelta(hours=2)
    assert await forget() == 1
    assert list(service.table.asked) == [asked("r2").key]
