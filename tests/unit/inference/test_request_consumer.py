"""Request events become requests; what fails goes to the dead letters with its reason, too."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests.support.async_requests import Clock, Inline, Model, Published, Table, event, failing

from headrace.inference.inference_forms import InferenceForms
from headrace.inference.request_consumer import RequestConsumer
from headrace.inference.use_cases.answer_requests import AnswerRequests
from headrace.messaging.consumer import PermanentFailure
from headrace.messaging.events import Event
from headrace.messaging.topics import INFERENCE_RESPONSES


class Service:
    """The consumer with everything behind it in memory."""

    def __init__(self) -> None:
        self.table, self.model, self.published, clock = Table(), Model(), Published(), Clock()
        answer = AnswerRequests(
            self.table,
            self.model,
            InferenceForms(),
            Inline(),
            self.published,
            clock,
            most_at_once=8,
            max_request_bytes=1000,
        )
        self.consumer = RequestConsumer(answer, clock, reply_topics=["mine"], retries=0)

    async def fails(self, event: Event) -> str:
        with pytest.raises(PermanentFailure) as raised:
            await self.consumer.requests(event)
        return raised.value.reason


@pytest.fixture
def service() -> Service:
    return Service()


async def test_an_answer_goes_to_the_topic_that_its_request_names(service: Service) -> None:
    await service.consumer.requests(event("r1"))
    await service.consumer.requests(event("r2", replyto="mine"))
    assert [record.topic for record in service.published.records] == [INFERENCE_RESPONSES, "mine"]


async def test_a_response_has_its_requests_partition_key(service: Service) -> None:
    await service.consumer.requests(event("r1", partitionkey="k"))
    assert service.published.records[0].key == "k"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (event("r1", replyto="somebody-elses"), "REPLY_TOPIC_NOT_ALLOWED"),
        (event("r1", priority="urgent"), "INVALID_ATTRIBUTE"),
        (replace(event("r1"), type="another"), "UNKNOWN_TYPE"),
        (replace(event("r1"), subject=""), "DEPLOYMENT_MISSING"),
        (replace(event("r1"), data=b"{"), "MALFORMED_PAYLOAD"),
    ],
)
async def test_a_wrong_request_is_told_and_set_aside(service: Service, wrong: Event, reason: str) -> None:
    assert await service.fails(wrong) == reason
    (record,) = service.published.records
    told = json.loads(record.value)
    assert (told["code"], told["reason"]) == ("INVALID_ARGUMENT", reason)
    assert record.topic == INFERENCE_RESPONSES
    assert service.model.asked == []


@pytest.mark.parametrize("name", ["x" * 257, "a\0b"])
async def test_a_name_that_no_row_holds_is_set_aside(service: Service, name: str) -> None:
    assert await service.fails(event(name)) == "INVALID_NAME"
    assert await service.fails(event("r1", partitionkey=name)) == "INVALID_NAME"
    assert service.table.asked == {}


async def test_used_up_retries_are_set_aside_and_a_passed_deadline_is_not(service: Service) -> None:
    service.model.behave = failing("INTERNAL")
    assert await service.fails(event("r1", retries="1")) == "INTERNAL"
    assert service.model.asked == ["r1", "r1"]
    await service.consumer.requests(event("r2", deadline="2020-01-01T00:00:00Z"))
    assert json.loads(service.published.records[-1].value)["code"] == "DEADLINE_EXCEEDED"


async def test_of_what_was_erased_no_dead_letter_is_made(service: Service) -> None:
    service.table.subjects_erased.add("c-1")
    data = json.dumps({"inputs": [], "parameters": {"subject": "c-1"}}).encode()
    await service.consumer.requests(replace(event("r1"), data=data))
    assert json.loads(service.published.records[-1].value)["reason"] == "SUBJECT_ERASED"
