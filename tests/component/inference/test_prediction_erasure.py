"""A subject out of the prediction log, by the inference service alone: no model has to answer for it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
from tests.component.inference.conftest import inference_service
from tests.support.services import ServiceProcess
from tests.support.traces_of_data import sql_tables_with
from tests.support.waiting import PATIENCE_SECONDS, eventually

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.inference.v1 import inference_pb2_grpc
from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.registry.v1 import registry_pb2
from headrace.errors import Unavailable
from headrace.events.registry.v1 import events_pb2
from headrace.messaging.client import consumer_client
from headrace.messaging.events import Event, protobuf_event
from headrace.messaging.producer import Producer
from headrace.messaging.topics import (
    FEEDBACK,
    INFERENCE_REQUESTS,
    INFERENCE_RESPONSES,
    MODEL_VERSIONS,
    PREDICTIONS,
)
from headrace.rpc.client import channel

pytestmark = pytest.mark.broker

DATASET = "patients"
BEFORE = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass
class Log:
    """The inference service with a database of its own, and a deployment and a subject of this test's.

    It reads what other tests have put into the topics, too.
    """

    service: ServiceProcess
    bootstrap: str
    dsn: str
    deployment: str
    subject: str

    @asynccontextmanager
    async def stub(self) -> AsyncIterator[inference_pb2_grpc.InferenceServiceAsyncStub]:
        async with channel(self.service.target) as opened:
            yield inference_pb2_grpc.InferenceServiceStub(opened)

    async def erase(self, erasure: str = "e1", dataset: str = DATASET, subject: str = "") -> int:
        async with self.stub() as stub:
            request = api.ErasePredictionsRequest(
                erasure=erasure, dataset=dataset, subject=subject or self.subject
            )
            return (await stub.ErasePredictions(request)).prediction_count

    async def deploy(self, *datasets: str) -> None:
        """Apply the deployment, and promote a version for each of the datasets, trained on it."""
        async with self.stub() as stub:
            await stub.ApplyDeployment(
                api.ApplyDeploymentRequest(name=self.deployment, model=self.deployment)
            )
        for version, dataset in enumerate(datasets, start=1):
            source = ingestion_pb2.DatasetVersion(dataset=dataset, version=1)
            promoted = registry_pb2.ModelVersion(
                model=self.deployment,
                version=version,
                artifacts=[registry_pb2.Artifact(path="model.onnx", uri="file:///nowhere/model.onnx")],
                lineage=registry_pb2.Lineage(dataset_version=source),
            )
            event = protobuf_event(
                events_pb2.ModelVersionPromoted(model_version=promoted),
                type="headrace.registry.model-version-promoted.v1",
                source="headrace/registry",
                subject=self.deployment,
                id=str(uuid.uuid4()),
                time=BEFORE,
            )
            await self._publish(MODEL_VERSIONS, self.deployment, event)
        await eventually(self.versions, lambda found: len(found) == len(datasets))

    async def predicted(
        self,
        name: str,
        subject: str,
        *,
        version: int = 1,
        deployment: str = "",
        time: datetime = BEFORE,
        table: str = "",
    ) -> None:
        """Publish a prediction as Triton's runtime does, one that becomes a row of `table` if named."""
        payload = {
            "prediction_id": name,
            "deployment": deployment or self.deployment,
            "version": version,
            "time": time.isoformat(),
            "seconds": 0.1,
            "inputs": [{"name": "features", "datatype": "FP32", "shape": [1, 1], "numbers": [1.5]}],
            "outputs": [{"name": "label", "datatype": "INT64", "shape": [1, 1], "numbers": [1]}],
            "subject": subject,
        }
        event = self._event("prediction", "headrace/triton", payload)
        if table:
            event = replace(event, extensions={"logdataset": table, "model": self.deployment})
        await self._publish(PREDICTIONS, self.deployment, event)

    async def asked(self, name: str, subject: str, *, time: datetime = BEFORE) -> None:
        """Send a request over Kafka whose deadline has passed."""
        payload = {"inputs": [], "parameters": {"subject": subject}}
        event = self._event("request", "tests", payload)
        past = {"deadline": "2020-01-01T00:00:00Z"}
        await self._publish(INFERENCE_REQUESTS, name, replace(event, id=name, time=time, extensions=past))

    async def requests(self) -> set[tuple[str, str]]:
        """Requests that have ended, and how."""
        connection = await asyncpg.connect(self.dsn)
        try:
            rows = await connection.fetch(
                "SELECT id, state FROM inference.requests WHERE deployment = $1 AND state <> 'RECEIVED'",
                self.deployment,
            )
        finally:
            await connection.close()
        return {(row["id"], row["state"]) for row in rows}

    async def until_told(self, name: str, reason: str) -> None:
        """Wait for a response to a request that says so.

        The broker is shared: another service, which knows nothing of the erasure, may answer it as well.
        """
        client = consumer_client(self.bootstrap, group=f"tests-{uuid.uuid4()}", client_id="tests")
        client.subscribe([INFERENCE_RESPONSES])
        await client.start()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                async for record in client:
                    answers = dict(record.headers)["ce_requestid"] == name.encode()
                    if answers and json.loads(record.value)["reason"] == reason:
                        return
            raise AssertionError("the responses ended")
        finally:
            await client.stop()

    async def labelled(self, name: str) -> None:
        payload = {"deployment": self.deployment, "prediction_id": name, "number": 1}
        await self._publish(FEEDBACK, name, self._event("feedback", "tests", payload))

    async def until_logged(self, *names: str) -> None:
        await eventually(self.predictions, lambda found: found == set(names))

    async def until_labelled(self, *names: str) -> None:
        await eventually(self.labels, lambda found: found == set(names))

    async def versions(self) -> set[str]:
        return await self._own("SELECT version::text FROM inference.served_versions WHERE model = $1")

    async def predictions(self) -> set[str]:
        return await self._own(
            "SELECT prediction_id FROM inference.predictions WHERE starts_with(deployment, $1)"
        )

    async def labels(self) -> set[str]:
        return await self._own("SELECT prediction_id FROM inference.feedback WHERE deployment = $1")

    async def _own(self, query: str) -> set[str]:
        connection = await asyncpg.connect(self.dsn)
        try:
            return {row[0] for row in await connection.fetch(query, self.deployment)}
        finally:
            await connection.close()

    def _event(self, kind: str, source: str, payload: object) -> Event:
        return Event(
            id=str(uuid.uuid4()),
            source=source,
            type=f"headrace.inference.{kind}.v1",
            subject=self.deployment,
            time=BEFORE,
            data=json.dumps(payload).encode(),
            content_type="application/json",
        )

    async def _publish(self, topic: str, key: str, event: Event) -> None:
        async with Producer(self.bootstrap, client_id="tests", idempotence=False) as producer:
            await producer.publish(topic, key, event)


MakeLog = Callable[..., Awaitable[Log]]


@pytest.fixture
async def make_log(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path
) -> AsyncIterator[MakeLog]:
    async with AsyncExitStack() as stack:

        async def make(**settings: str) -> Log:
            service = inference_service(tmp_path, kafka_bootstrap, postgres_dsn, store_uri, **settings)
            stack.push_async_callback(service.stop)
            await service.start()
            own = uuid.uuid4().hex[:8]
            return Log(service, kafka_bootstrap, postgres_dsn, f"model-{own}", f"subject-{own}")

        yield make


async def test_a_subjects_predictions_go_with_their_labels_and_nobody_elses(make_log: MakeLog) -> None:
    log = await make_log()
    await log.deploy(DATASET, "others")
    await log.predicted("theirs", log.subject)
    await log.predicted("of-a-deployment-that-is-gone", log.subject, deployment=f"{log.deployment}-gone")
    await log.predicted("of-other-data", log.subject, version=2)
    await log.predicted("another's", "another")
    await log.predicted("nobody's", "")
    await log.labelled("theirs")
    await log.labelled("another's")
    kept = {"of-other-data", "another's", "nobody's"}
    await log.until_logged("theirs", "of-a-deployment-that-is-gone", *kept)
    await log.until_labelled("theirs", "another's")

    assert await log.erase() == 2
    assert await log.predictions() == kept
    assert await log.labels() == {"another's"}
    # Whoever asks again, for it did not hear the answer, hears the same.
    assert await log.erase() == 2
    assert await log.erase("e2", "others") == 1
    assert await sql_tables_with(log.dsn, "inference", [log.subject]) == []
    assert await log.erase("e3", subject="nobody") == 0


async def test_predictions_from_before_an_erasure_that_come_after_it_are_not_kept(make_log: MakeLog) -> None:
    log = await make_log()
    await log.deploy(DATASET, "others")
    await log.labelled("late")
    await log.until_labelled("late")
    assert await log.erase() == 0
    later = datetime.now(UTC) + timedelta(hours=1)
    await log.predicted("late", log.subject)
    await log.predicted("late-of-other-data", log.subject, version=2)
    await log.predicted("late-of-another", "another")
    await log.predicted("new", log.subject, time=later)
    # A partition's predictions are stored in its order.
    await eventually(log.predictions, lambda found: "new" in found)
    assert await log.predictions() == {"late-of-other-data", "late-of-another", "new"}
    assert await log.labels() == set()
    # Those that came since are this erasure's, too.
    assert await log.erase() == 1
    assert await log.predictions() == {"late-of-other-data", "late-of-another"}


async def test_a_subjects_requests_over_kafka_go_and_those_from_before_get_no_answer(
    make_log: MakeLog,
) -> None:
    log = await make_log()
    # No model answers here: they expire, and are kept to be run again.
    theirs, another, repeated = (f"{log.deployment}-{number}" for number in range(3))
    await log.asked(theirs, log.subject)
    await log.asked(another, "another")
    await eventually(log.requests, lambda found: found == {(theirs, "EXPIRED"), (another, "EXPIRED")})
    await log.erase()
    assert await log.requests() == {(another, "EXPIRED")}

    # What was sent before the erasure comes again, and what is sent since is a request like any other.
    await log.asked(repeated, log.subject)
    later = datetime.now(UTC) + timedelta(hours=1)
    await log.asked(f"{repeated}-later", log.subject, time=later)
    await eventually(log.requests, lambda found: (f"{repeated}-later", "EXPIRED") in found)
    await log.until_told(repeated, "SUBJECT_ERASED")
    assert await log.requests() == {(another, "EXPIRED"), (f"{repeated}-later", "EXPIRED")}
    await log.erase("e2")
    assert await log.requests() == {(another, "EXPIRED")}


@pytest.mark.kill
async def test_an_erasure_whose_answer_was_lost_counts_each_prediction_once(
    make_log: MakeLog, tmp_path: Path
) -> None:
    log = await make_log(
        HEADRACE_FAULT="inference.after-erase-commit", HEADRACE_FAULT_ONCE=str(tmp_path / "fired")
    )
    await log.deploy(DATASET)
    await log.predicted("theirs", log.subject)
    await log.until_logged("theirs")
    with pytest.raises(Unavailable):
        await log.erase()
    await log.service.killed()
    await log.service.start()
    assert await log.erase() == 1
    assert await log.predictions() == set()


async def test_an_erasure_is_forgotten_when_no_prediction_from_before_can_come(
    make_log: MakeLog,
) -> None:
    log = await make_log()
    await log.erase()
    connection = await asyncpg.connect(log.dsn)
    try:
        await connection.execute(
            "UPDATE inference.erasures SET erase_time = erase_time - interval '193 hours'"
        )
        await log.erase("e2")
        await log.service.stop()
        await log.service.start()

        async def remembered() -> list[str]:
            return [row[0] for row in await connection.fetch("SELECT id FROM inference.erasures")]

        await eventually(remembered, lambda found: found == ["e2"])
    finally:
        await connection.close()
