"""Requests over Kafka, with a real broker, PostgreSQL, Triton and Envoy."""

from __future__ import annotations

import asyncio
import json
import math
import os
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest
import tritonclient.grpc.aio as triton
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from tests.component.inference.conftest import DEADLINE, MakePlane, Plane, parts
from tests.support.brokers import new_broker
from tests.support.models import classifier
from tests.support.topics import make_again
from tests.support.waiting import eventually
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.api.inference.v1 import inference_pb2, requests_pb2_grpc
from headrace.api.inference.v1 import requests_pb2 as api
from headrace.client import HeadraceClient, Targets
from headrace.client.requesting import Answer
from headrace.embedded.parts import free_port
from headrace.embedded.parts.postgres import Postgres
from headrace.errors import DeadlineExceeded, InvalidArgument
from headrace.inference.use_cases.responses import ANSWERED, FAILED
from headrace.messaging.client import consumer_client, reader_client
from headrace.messaging.events import PROTOBUF, Event, decode
from headrace.messaging.producer import Producer
from headrace.messaging.topics import (
    INFERENCE_REQUESTS,
    INFERENCE_RESPONSES,
    Topic,
    ensure_topics,
    load_topics,
)
from headrace.rpc.client import channel

pytestmark = pytest.mark.broker

KAFKA_IDEMPOTENCE = os.environ.get("HEADRACE_TEST_BROKER") == "kafka"
FAULT_POINTS = (
    "inference.after-request-stored",
    "inference.before-request-sent",
    "inference.after-answer-stored",
    "inference.after-answer-published",
)


def request(
    deployment: str,
    request_id: str,
    *,
    columns: int = 3,
    value: float = 1.0,
    subject: str = "",
    segment: str = "",
    **extensions: str,
) -> Event:
    data = [value] * columns
    document: dict[str, object] = {
        "inputs": [{"name": "features", "shape": [1, columns], "datatype": "FP32", "data": data}]
    }
    named = {"subject": subject, "segment": segment}
    if parameters := {parameter: text for parameter, text in named.items() if text}:
        document["parameters"] = parameters
    return Event(
        id=request_id,
        source="tests",
        type="headrace.inference.request.v1",
        subject=deployment,
        time=datetime.now(UTC),
        data=json.dumps(document).encode(),
        content_type="application/json",
        extensions=extensions,
    )


async def send(plane: Plane, *events: Event) -> None:
    async with Producer(plane.bootstrap, client_id="tests", idempotence=False) as producer:
        keyed = [(event.extensions.get("partitionkey", event.id), event) for event in events]
        await producer.publish_all(INFERENCE_REQUESTS, keyed)


async def responses(
    plane: Plane, deployment: str, ids: set[str], kinds: tuple[str, ...] = (ANSWERED, FAILED)
) -> list[Event]:
    """Every response to the deployment's requests, read until there is one to each of these."""
    client = consumer_client(plane.bootstrap, group=f"tests-{uuid.uuid4()}", client_id="tests")
    client.subscribe([INFERENCE_RESPONSES])
    await client.start()
    found: list[Event] = []
    try:
        async with asyncio.timeout(DEADLINE):
            while not ids <= {event.extensions["requestid"] for event in found}:
                for records in (await client.getmany(timeout_ms=200)).values():
                    events = [decode(it.headers, it.value, received=datetime.now(UTC)) for it in records]
                    found += [it for it in events if it.subject == deployment and it.type in kinds]
    finally:
        await client.stop()
    return found


@asynccontextmanager
async def requests_of(plane: Plane) -> AsyncIterator[requests_pb2_grpc.RequestServiceAsyncStub]:
    async with channel(plane.service.target) as opened:
        yield requests_pb2_grpc.RequestServiceStub(opened)


async def test_requests_are_answered_told_what_is_wrong_and_found(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    good, wrong, late = (f"{name}-{kind}" for kind in ("good", "wrong", "late"))
    await send(
        plane,
        request(name, good),
        request(name, good),
        request(name, wrong, columns=2),
        request(name, late, deadline="2020-01-01T00:00:00Z"),
    )
    by_id = {
        event.extensions["requestid"]: event for event in await responses(plane, name, {good, wrong, late})
    }
    answer = json.loads(by_id[good].data)
    assert (answer["model_version"], answer["id"]) == ("1", good)
    assert {output["name"]: output["data"] for output in answer["outputs"]}["label"] == [0]
    assert json.loads(by_id[wrong].data)["code"] == "INVALID_ARGUMENT"
    assert "expected" in json.loads(by_id[wrong].data)["error"]
    assert json.loads(by_id[late].data)["code"] == "DEADLINE_EXCEEDED"
    await plane.until_logged(name, {good})
    async with requests_of(plane) as stub:
        found = await stub.GetRequest(api.GetRequestRequest(id=good))
        assert (found.state, found.version) == (api.REQUEST_STATE_ANSWERED, "1")
        failed = await stub.ListRequests(
            api.ListRequestsRequest(deployment=name, state=api.REQUEST_STATE_FAILED)
        )
        assert [row.id for row in failed.requests] == [wrong]
        replayed = await stub.ReplayRequest(api.ReplayRequestRequest(id=wrong))
        assert (replayed.state, replayed.replays) == (api.REQUEST_STATE_RECEIVED, 1)


async def test_requests_are_answered_from_the_first_one_of_a_topic_that_was_made_again(
    plane: Plane, name: str
) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    for generation in ("old", "new"):
        ids = {f"{name}-{generation}-{number}" for number in range(20)}
        await send(plane, *(request(name, request_id) for request_id in ids))
        answers = [event for event in await responses(plane, name, ids) if event.type == ANSWERED]
        # What was read before it was noticed is answered again, with the stored answer.
        by_id = {event.extensions["requestid"]: event.data for event in answers}
        assert ids <= set(by_id)
        assert all(event.data == by_id[event.extensions["requestid"]] for event in answers)
        if generation == "old":
            await make_again(plane.bootstrap, load_topics()[INFERENCE_REQUESTS])


async def test_requests_that_are_asked_together_have_answers_and_predictions_of_their_own(
    plane: Plane, name: str
) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    values = {f"{name}-{number}": 1.0 if number % 3 else -1.0 for number in range(60)}
    named = {request_id for request_id, value in values.items() if value < 0}
    await send(
        plane,
        *(
            request(name, request_id, value=value, subject=name if request_id in named else "")
            for request_id, value in values.items()
        ),
    )
    for event in await responses(plane, name, set(values), (ANSWERED,)):
        answer = json.loads(event.data)
        assert answer["id"] == event.extensions["requestid"]
        labels = {output["name"]: output["data"] for output in answer["outputs"]}["label"]
        assert labels == [1 if values[answer["id"]] < 0 else 0]
    logged = await plane.until_logged(name, set(values))
    assert set(logged) == set(values)
    async with triton.InferenceServerClient(f"127.0.0.1:{plane.triton.ports.grpc}") as client:
        statistics = await client.get_inference_statistics(name)
    assert statistics.model_stats[0].inference_stats.success.count < len(values)
    erasure = inference_pb2.ErasePredictionsRequest(erasure=name, dataset="its-dataset", subject=name)
    assert (await plane.stub.ErasePredictions(erasure)).prediction_count == len(named)
    left = await plane.stub.ListPredictions(
        inference_pb2.ListPredictionsRequest(deployment=name, page_size=1000)
    )
    assert {prediction.id for prediction in left.predictions} == set(values) - named


async def test_nan_and_classes_are_answered_as_documented_whatever_the_protocol(
    plane: Plane, name: str
) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1, model=classifier(math.nan))
    await plane.until_live(name, 1)
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 1, 1]}
    document = {
        "inputs": [tensor],
        "outputs": [
            {"name": "probabilities"},
            {"name": "label", "parameters": {"classification": 1}},
        ],
    }
    message = service_pb2.ModelInferRequest(model_name=name)
    message.inputs.add(name="features", datatype="FP32", shape=[1, 3])
    message.raw_input_contents.append(np.ones(3, "<f4").tobytes())
    message.outputs.add(name="probabilities")
    message.outputs.add(name="label").parameters["classification"].int64_param = 1

    async with grpc.aio.insecure_channel(plane.address) as opened:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(opened)
        called = await stub.ModelInfer(message, timeout=DEADLINE)
    async with httpx.AsyncClient(base_url=f"http://{plane.address}", timeout=DEADLINE) as client:
        rest = await client.post(f"/v2/models/{name}/infer", json=document)
    as_json = replace(request(name, f"{name}-json"), data=json.dumps(document).encode())
    as_protobuf = replace(
        request(name, f"{name}-protobuf"), data=message.SerializeToString(), content_type=PROTOBUF
    )
    await send(plane, as_json, as_protobuf)
    by_id = {
        event.extensions["requestid"]: event.data
        for event in await responses(plane, name, {as_json.id, as_protobuf.id}, (ANSWERED,))
    }
    sent = service_pb2.ModelInferResponse.FromString(by_id[as_protobuf.id])
    assert np.isnan(np.frombuffer(called.raw_output_contents[0], "<f4")).all()
    for answer in (called, sent):
        assert list(answer.outputs) == list(called.outputs)
        assert list(answer.raw_output_contents) == list(called.raw_output_contents)
    # REST's is Triton's, and no JSON.
    assert '"data":[NaN,NaN]' in rest.text
    probabilities, label = json.loads(by_id[as_json.id])["outputs"]
    assert probabilities["data"] == ["NaN", "NaN"]
    assert label == rest.json()["outputs"][1]
    assert label["datatype"] == "BYTES"


async def test_a_limited_models_requests_are_all_answered_and_no_faster_than_the_limit(
    make_plane: MakePlane, name: str
) -> None:
    rate, count = 20, 120
    plane = await make_plane(
        HEADRACE_INFERENCE_MODEL_REQUESTS_PER_SECOND=str(rate),
        # Those over Kafka are not one client's.
        HEADRACE_INFERENCE_CLIENT_REQUESTS_PER_SECOND="1",
    )
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    ids = {f"{name}-{number}" for number in range(count)}
    await send(plane, *(request(name, request_id, retries="0") for request_id in ids))
    # Another test's service reads the topic too, and knows no such deployment.
    answers = await responses(plane, name, ids, (ANSWERED,))
    times = sorted({event.extensions["requestid"]: event.time for event in answers}.values())
    # A full bucket at first, and another one each second.
    assert (times[-1] - times[0]).total_seconds() > count / rate - 2


async def test_a_rollouts_shares_hold_for_requests_over_kafka(plane: Plane, name: str) -> None:
    await plane.deploy(name, steps=(30, 100), hold=600)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    await plane.promote(name, 2)
    # Ready: Envoy has taken the shares.
    await plane.until(name, lambda d: d.ready and {t.version: t.weight for t in d.traffic} == {1: 70, 2: 30})
    ids = {f"{name}-{number}" for number in range(500)}
    await send(plane, *(request(name, request_id) for request_id in ids))
    answered = {
        event.extensions["requestid"]: json.loads(event.data)["model_version"]
        for event in await responses(plane, name, ids, (ANSWERED,))
    }
    seen = Counter(answered.values())
    assert set(seen) == {"1", "2"}
    # Five standard deviations of a binomial with p = 0.3.
    assert abs(seen["2"] - 150) < 5 * (500 * 0.3 * 0.7) ** 0.5


async def test_a_program_submits_requests_and_waits_for_their_answers(plane: Plane, name: str) -> None:
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    targets = Targets(
        {"kafka": plane.bootstrap, "store": plane.store.root}, kafka_idempotence=KAFKA_IDEMPOTENCE
    )
    # Each payload is a claim check, the answers are not.
    async with HeadraceClient(targets, inline_bytes=10) as client, asyncio.timeout(DEADLINE):
        rows = np.ones((1, 3), dtype=np.float32)
        first, wrong, late = await asyncio.gather(
            client.submit(name, rows, request_id=f"{name}-1", order=name),
            client.submit(name, rows[:, :2]),
            client.submit(name, rows, deadline=timedelta(0)),
        )
        prediction = await first.answer()
        assert (prediction.prediction_id, prediction.version) == (f"{name}-1", "1")
        assert prediction.outputs["label"].tolist() == [[0]]
        with pytest.raises(InvalidArgument, match="expected"):
            await wrong.answer()
        with pytest.raises(DeadlineExceeded):
            await late.answer()
        again = await client.submit(name, rows, request_id=f"{name}-1")
        assert (await again.answer()).outputs["label"].tolist() == [[0]]

        ids = {first.id, wrong.id, late.id}
        async with aclosing(client.answers(f"tests-{name}")) as answers:
            found = {answer.request_id: answer async for answer in until_all(answers, ids)}
        assert found[first.id].result().version == "1"
        assert found[wrong.id].error is not None


async def until_all(answers: AsyncIterator[Answer], ids: set[str]) -> AsyncIterator[Answer]:
    """Answers until there is one to each of these requests."""
    missing = set(ids)
    async for answer in answers:
        yield answer
        missing.discard(answer.request_id)
        if not missing:
            return


async def to_the_end(plane: Plane, topic: Topic) -> dict[TopicPartition, list[ConsumerRecord]]:
    """Every record of a topic, to the end that it has now."""
    partitions = [TopicPartition(topic.name, number) for number in range(topic.partitions)]
    reader = reader_client(plane.bootstrap, client_id="tests")
    await reader.start()
    found: dict[TopicPartition, list[ConsumerRecord]] = {partition: [] for partition in partitions}
    try:
        reader.assign(partitions)
        await reader.seek_to_beginning()
        async with asyncio.timeout(DEADLINE):
            # What a fetch says, for asked about its ends the embedded broker counts batches.
            while [reader.highwater(it) for it in partitions] != [
                await reader.position(it) for it in partitions
            ]:
                for partition, records in (await reader.getmany(timeout_ms=200)).items():
                    found[partition] += records
    finally:
        await reader.stop()
    return found


async def events_of(plane: Plane, topic: Topic) -> list[Event]:
    """Every event of a topic, those of one partition in their order."""
    return [
        decode(record.headers, record.value, received=datetime.now(UTC))
        for records in (await to_the_end(plane, topic)).values()
        for record in records
    ]


async def until_all_is_committed(plane: Plane) -> None:
    """Wait until the service has nothing in work: each request's offset is committed behind its response."""
    group = f"{plane.service.settings['HEADRACE_INFERENCE_CONSUMER_GROUP']}.{INFERENCE_REQUESTS}"
    sent = await to_the_end(plane, load_topics()[INFERENCE_REQUESTS])
    ends = {partition: records[-1].offset + 1 for partition, records in sent.items() if records}
    admin = AIOKafkaAdminClient(bootstrap_servers=plane.bootstrap)
    await admin.start()
    try:

        async def committed() -> dict[TopicPartition, int]:
            offsets = await admin.list_consumer_group_offsets(group, partitions=list(ends))
            return {partition: it.offset for partition, it in offsets.items()}

        await eventually(committed, lambda found: found == ends)
    finally:
        await admin.close()


async def one_answer_each(plane: Plane, name: str, ids: set[str]) -> None:
    """Wait until each has its answer, and see that it has no other response, of whatever kind.

    To be used on a plane with a broker of its own: another service would answer, too.
    """
    last = request(name, f"{name}-last")
    await responses(plane, name, ids, (ANSWERED,))
    await send(plane, last)
    await responses(plane, name, {last.id}, (ANSWERED,))
    await until_all_is_committed(plane)
    by_id: dict[str, set[tuple[str, str, bytes]]] = {}
    for event in await events_of(plane, load_topics()[INFERENCE_RESPONSES]):
        if event.subject == name:
            told = by_id.setdefault(event.extensions["requestid"], set())
            told.add((event.id, event.type, event.data))
    assert set(by_id) == {*ids, last.id}
    assert [told for told in by_id.values() if len(told) != 1] == []


@pytest.mark.kill
@pytest.mark.parametrize("point", FAULT_POINTS)
async def test_an_answer_survives_the_death_of_its_service(
    make_lone_plane: MakePlane, name: str, point: str, tmp_path: Path
) -> None:
    plane = await make_lone_plane()
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    # Only now: its model has to be there first.
    await plane.service.stop()
    plane.service.settings |= {
        "HEADRACE_FAULT": f"{point}:20",
        "HEADRACE_FAULT_ONCE": str(tmp_path / "died"),
    }
    await plane.service.start()
    ids = {f"{name}-{number}" for number in range(50)}
    await send(plane, *(request(name, request_id) for request_id in sorted(ids)))
    await plane.service.killed()
    await plane.service.start()
    await one_answer_each(plane, name, ids)


@pytest.mark.kill
@pytest.mark.parametrize("victim", ["triton", "envoy"])
async def test_an_answer_survives_the_death_of_what_it_comes_from(
    make_lone_plane: MakePlane, name: str, victim: str
) -> None:
    plane = await make_lone_plane()
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    part = plane.triton if victim == "triton" else plane.envoy
    before, while_away = ({f"{name}-{kind}-{number}" for number in range(200)} for kind in ("b", "w"))
    await send(plane, *(request(name, request_id) for request_id in sorted(before)))
    await responses(plane, name, {f"{name}-b-0"}, (ANSWERED,))
    part.kill()
    await part.wait()
    await send(plane, *(request(name, request_id) for request_id in sorted(while_away)))
    await part.start()
    await one_answer_each(plane, name, before | while_away)


@pytest.mark.kill
async def test_an_answer_survives_the_death_of_the_database(
    own_broker: str, session_folder: Path, store_uri: str, tmp_path: Path, name: str
) -> None:
    # Durable, and not below the test's folder, which is closed to the user that it runs as.
    database = Postgres(session_folder / name, tmp_path / "logs", free_port())
    own = parts(tmp_path, own_broker, database.dsn, store_uri)
    await database.start()
    try:
        await own.start()
        async with own.plane() as plane:
            await plane.deploy(name)
            await plane.promote(name, 1)
            await plane.until_live(name, 1)
            before, while_away = ({f"{name}-{kind}-{number}" for number in range(200)} for kind in ("b", "w"))
            await send(plane, *(request(name, request_id) for request_id in sorted(before)))
            await responses(plane, name, {f"{name}-b-0"}, (ANSWERED,))
            await kill_all_of(database)
            await send(plane, *(request(name, request_id) for request_id in sorted(while_away)))
            await database.start()
            await one_answer_each(plane, name, before | while_away)
    finally:
        await own.stop()
        await database.stop()


async def kill_all_of(database: Postgres) -> None:
    """Kill the server with its sessions, which would end what they are at."""
    assert database.pid is not None
    sessions = psutil.Process(database.pid).children(recursive=True)
    # First of all: it would mend what is wrong with a session.
    database.kill()
    for session in sessions:
        session.kill()
    await database.wait()
    assert not psutil.wait_procs(sessions, timeout=DEADLINE)[1]


@pytest.mark.kill
@pytest.mark.skipif(not KAFKA_IDEMPOTENCE, reason="the embedded broker keeps nothing when it dies")
async def test_an_answer_survives_the_death_of_the_broker(
    postgres_dsn: str, store_uri: str, tmp_path: Path, name: str
) -> None:
    broker = new_broker(tmp_path)
    own = parts(tmp_path, broker.bootstrap, postgres_dsn, store_uri)
    await broker.start()
    try:
        await ensure_topics(broker.bootstrap, load_topics().values())
        await own.start()
        async with own.plane() as plane:
            await plane.deploy(name)
            await plane.promote(name, 1)
            await plane.until_live(name, 1)
            ids = {f"{name}-{number}" for number in range(200)}
            await send(plane, *(request(name, request_id) for request_id in sorted(ids)))
            await responses(plane, name, {f"{name}-0"}, (ANSWERED,))
            broker.kill()
            await broker.wait()
            await broker.start()
            await one_answer_each(plane, name, ids)
    finally:
        await own.stop()
        await broker.stop()
