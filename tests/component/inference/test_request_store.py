"""Several instances that have one request in work, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from tests.support.async_requests import Clock, Inline, Model, Published, asked, failing
from tests.support.waiting import eventually

from headrace.inference.domain.requests import RequestKey, RequestState
from headrace.inference.inference_forms import InferenceForms
from headrace.inference.storage.requests import PostgresRequests
from headrace.inference.use_cases.answer_requests import AnswerRequests
from headrace.inference.use_cases.manage_requests import ManageRequests
from headrace.inference.use_cases.responses import ResponseWriter
from headrace.postgres import connect
from headrace.postgres.migrations import migrate


class Instance:
    """One of several: the table and the topic are everybody's, the calls are its own."""

    def __init__(self, store: PostgresRequests, published: Published) -> None:
        self.model, clock = Model(), Clock()
        self.answer = AnswerRequests(
            store,
            self.model,
            InferenceForms(),
            Inline(),
            published,
            clock,
            most_at_once=8,
            max_request_bytes=1000,
        )
        writer = ResponseWriter(InferenceForms(), Inline())
        self.manage = ManageRequests(store, writer, published, clock, self.answer.interrupt)

    async def until_asked(self) -> None:
        async def sent() -> list[str]:
            return self.model.asked

        await eventually(sent, bool)


@pytest.fixture
async def store(postgres_dsn: str) -> AsyncIterator[PostgresRequests]:
    async with connect(postgres_dsn, schema="inference", application_name="tests") as pool:
        await migrate(pool, "headrace.inference.storage")
        yield PostgresRequests(pool)


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
def instance(store: PostgresRequests, published: Published) -> Callable[[], Instance]:
    return lambda: Instance(store, published)


async def test_what_is_replayed_while_an_old_run_goes_on_has_one_response_for_each_id(
    instance: Callable[[], Instance], published: Published
) -> None:
    one, other = instance(), instance()
    one.model.open.clear()
    old = asyncio.create_task(one.answer(asked("r1")))
    await one.until_asked()
    other.model.behave = failing("INVALID_ARGUMENT")
    assert (await other.answer(asked("r1"))).state is RequestState.FAILED
    assert (await other.manage.replay("r1", "", None)).replays == 1
    # Comes to where the old run is, and waits for it.
    new = asyncio.create_task(one.answer(asked("r1")))
    one.model.open.set()
    assert (await old).state is RequestState.ANSWERED
    assert await new == await old
    # The answer of the old run was that of nobody: the model was asked for the new one.
    assert one.model.asked == ["r1", "r1"]
    failed, answered = published.records
    assert dict(failed.headers)["ce_id"] != dict(answered.headers)["ce_id"]
    stored = await other.answer(asked("r1"))
    assert (stored.replays, stored.response) == (1, answered)


def refusing(model: Model) -> None:
    """It is asked again and again."""
    model.behave = failing("UNAVAILABLE")


def slow(model: Model) -> None:
    """The calls of some are under way, and the others wait for their turn."""
    model.open.clear()


@pytest.mark.parametrize("hinder", [refusing, slow])
async def test_what_is_cancelled_at_another_instance_is_stopped_and_told(
    instance: Callable[[], Instance], published: Published, hinder: Callable[[Model], None]
) -> None:
    one, other = instance(), instance()
    looking = asyncio.create_task(one.answer.look_for_ends())
    hinder(one.model)
    # None has a deadline: without an end that is seen they would be here for ever.
    names = [f"r{number}" for number in range(5)]
    running = [asyncio.create_task(one.answer(asked(name))) for name in names]
    await one.until_asked()
    try:
        for name in names:
            await other.manage.cancel(name, "")
        async with asyncio.timeout(30):
            assert {ended.state for ended in await asyncio.gather(*running)} == {RequestState.CANCELLED}
    finally:
        looking.cancel()
    assert sorted(published.ids()) == names


async def test_the_end_of_a_run_before_a_replay_is_not_stored(
    store: PostgresRequests, instance: Callable[[], Instance]
) -> None:
    one = instance()
    one.model.behave = failing("INVALID_ARGUMENT")
    ended = await one.answer(asked("r1"))
    assert await store.run_again(RequestKey("tests", "r1"), None)
    (known,) = await store.end([ended])
    assert known is not None
    assert (known.replays, known.ended) == (1, None)
