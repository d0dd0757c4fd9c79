"""Predictions as rows of a dataset: Triton, broker, and the services of inference and ingestion."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import MakePlane, Plane, ask
from tests.component.inference.test_prediction_erasure import Log
from tests.component.inference.test_trials import ROWS
from tests.support.ingestion import Ingestion, Process, ingestion_on
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2
from headrace.api.ingestion.v1 import erasure_pb2, erasure_pb2_grpc
from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.errors import FailedPrecondition
from headrace.messaging.topics import SAMPLES
from headrace.rpc.client import channel

pytestmark = pytest.mark.broker

DEADLINE = 60.0
KEYS = "k1=" + base64.b64encode(b"1" * 32).decode()
TRACE = uuid.uuid4().hex
FAULT_POINTS = ("inference.before-table-publish", "inference.after-table-publish")


@dataclass
class Tabled:
    """A data plane whose predictions become rows of a dataset, and the ingestion service that has it."""

    plane: Plane
    trained_on: Ingestion
    table: Ingestion
    process: Process
    name: str

    async def deploy(self, share: float = 1.0) -> None:
        """Apply the deployment, with a version that was trained on a dataset with a personal field."""
        person = api.Field(
            name="c",
            type=api.FIELD_TYPE_FLOAT64,
            nullable=True,
            role=api.FIELD_ROLE_PERSONAL,
            treatment=api.FIELD_TREATMENT_PSEUDONYMISE,
        )
        schema = api.Schema(
            key="patient",
            features=[
                api.Field(name="a", type=api.FIELD_TYPE_FLOAT32, max=0.5, unit="mm"),
                api.Field(name="b", type=api.FIELD_TYPE_INT8, role=api.FIELD_ROLE_PROTECTED),
            ],
            label=api.Field(name="ill", type=api.FIELD_TYPE_INT8),
            attributes=[person],
        )
        async with self.trained_on.stub(self.process) as stub:
            await stub.ApplyDataset(api.ApplyDatasetRequest(name=self.trained_on.dataset, schema=schema))
        log = scheduling.PredictionLogSpec(share=share, dataset=self.table.dataset)
        await self.plane.deploy(self.name, log=log)
        await self.plane.promote(self.name, 1, dataset=self.trained_on.dataset)
        await self.plane.until_live(self.name, 1)

    async def until_rows(self, count: int) -> list[Mapping[str, object]]:
        return await eventually(self.table.rows, lambda rows: len(rows) >= count, DEADLINE)

    async def all_rows(self) -> list[Mapping[str, object]]:
        """Those that there are when all that was sent has been read."""
        await self.table.caught_up(self.process)
        return await self.table.rows()


@pytest.fixture
async def ingestion(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path
) -> AsyncIterator[Ingestion]:
    async with ingestion_on(kafka_bootstrap, postgres_dsn, store_uri, tmp_path) as environment:
        yield environment


async def tabled(make_plane: MakePlane, ingestion: Ingestion, name: str, **settings: str) -> Tabled:
    process = await ingestion.start_ready(HEADRACE_INGESTION_PRIVACY_KEYS=KEYS)
    plane = await make_plane(HEADRACE_INFERENCE_INGESTION_TARGET=process.target, **settings)
    return Tabled(plane, ingestion, replace(ingestion, dataset=f"asked-{name}"), process, name)


async def test_each_row_that_is_asked_becomes_one_of_the_dataset(
    make_plane: MakePlane, ingestion: Ingestion, name: str
) -> None:
    own = await tabled(make_plane, ingestion, name)
    await own.deploy()
    async with own.plane.client() as client:
        await ask(
            client,
            name,
            request_id="one",
            parameters={"subject": "patient-7", "segment": "ward-3"},
            headers={"traceparent": f"00-{TRACE}-{'c' * 16}-01"},
        )
        tensor = triton.InferInput("features", [2, 3], "FP32")
        tensor.set_data_from_numpy(np.array([[1, 2, 3], [np.nan, -5, -6]], np.float32))
        await client.infer(name, [tensor], request_id="two", client_timeout=10)
    async with httpx.AsyncClient(base_url=f"http://{own.plane.address}") as rest:
        answer = await rest.post(f"/v2/models/{name}/infer", json={"inputs": [ROWS]})
        assert answer.status_code == 200
    await own.until_rows(4)
    rows = await own.all_rows()
    assert len(rows) == 4
    assert await own.table.rejected(own.process) == []

    one = next(row for row in rows if row["prediction_id"] == "one")
    assert (one["subject"], one["trace_id"], one["shadow"]) == ("patient-7", TRACE, False)
    assert one["segment"] == "ward-3"
    assert (one["deployment"], one["model"], one["model_version"]) == (name, name, 1)
    # 1.0 is more than the training data may have: what was asked is what is stored.
    assert (one["a"], one["b"], one["answer"]) == (1.0, 1.0, 0.0)
    assert isinstance(one["seconds"], float)
    assert 0 < one["seconds"] < 10
    assert one["answer_probabilities_0"] == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-5)
    age = datetime.now(UTC) - one["_event_time"]  # type: ignore[operator]
    assert timedelta() < age < timedelta(minutes=2)

    first, second = sorted(
        (row for row in rows if row["prediction_id"] == "two"), key=lambda row: str(row["row"])
    )
    assert (first["row"], first["a"], first["b"], first["answer"]) == (0, 1.0, 2.0, 0.0)
    assert (second["row"], second["a"], second["b"]) == (1, None, -5.0)
    # Nobody was named: the request is its own subject.
    assert first["subject"] == second["subject"] == "two"
    assert len({row["_event_id"] for row in rows}) == 4
    # Covered as the training data's are.
    assert all(str(row["c"]).startswith("k1.") for row in rows)

    async with own.table.stub(own.process) as stub:
        schema = (await stub.GetDataset(api.GetDatasetRequest(name=own.table.dataset))).schema
    assert [(field.name, field.role, field.unit) for field in schema.features] == [
        ("a", api.FIELD_ROLE_UNSPECIFIED, "mm"),
        ("b", api.FIELD_ROLE_PROTECTED, ""),
    ]
    assert schema.label.name == "answer"


async def test_a_share_of_the_requests_becomes_rows_and_a_subject_is_erased(
    make_plane: MakePlane, ingestion: Ingestion, name: str
) -> None:
    own = await tabled(make_plane, ingestion, name)
    await own.deploy(share=0.5)
    async with own.plane.client() as client:
        for number in range(40):
            await ask(client, name, request_id=str(number), parameters={"subject": f"s{number % 2}"})
        await own.plane.deploy(name, log=scheduling.PredictionLogSpec(dataset=own.table.dataset))

        async def all_are_logged() -> bool:
            await ask(client, name, request_id="end", parameters={"subject": "end"})
            return any(row["prediction_id"] == "end" for row in await own.table.rows())

        await eventually(all_are_logged, bool, DEADLINE)
    rows = await own.all_rows()
    before = {str(row["prediction_id"]) for row in rows} - {"end"}
    assert set(await own.plane.until_logged(name, before)) - {"end"} == before
    assert 5 < len(before) < 35
    async with channel(own.process.target) as opened:
        erasures = erasure_pb2_grpc.ErasureServiceStub(opened)
        await erasures.EraseSubject(erasure_pb2.EraseSubjectRequest(dataset=own.table.dataset, key="s1"))
    left = await eventually(
        own.table.rows, lambda rows: all(row["subject"] != "s1" for row in rows), DEADLINE
    )
    assert {str(row["prediction_id"]) for row in left} - {"end"} == {
        one for one in before if int(one) % 2 == 0
    }


async def test_what_was_asked_before_its_subject_was_erased_does_not_become_a_row_later(
    make_plane: MakePlane, ingestion: Ingestion, name: str
) -> None:
    own = await tabled(make_plane, ingestion, name)
    await own.deploy()
    log = Log(own.plane.service, ingestion.bootstrap, ingestion.dsn, name, "patient-7")
    await log.erase(dataset=own.table.dataset)
    await log.predicted("late", "patient-7", table=own.table.dataset)
    await log.predicted("of-another", "patient-8", table=own.table.dataset)
    later = datetime.now(UTC) + timedelta(hours=1)
    await log.predicted("new", "patient-7", table=own.table.dataset, time=later)
    # A partition's predictions are read in its order.
    await own.until_rows(2)
    assert {row["prediction_id"] for row in await own.all_rows()} == {"of-another", "new"}


async def test_a_dataset_of_something_else_is_refused(
    make_plane: MakePlane, ingestion: Ingestion, name: str
) -> None:
    own = await tabled(make_plane, ingestion, name)
    await ingestion.apply(own.process)
    with pytest.raises(FailedPrecondition) as refused:
        await own.plane.deploy(name, log=scheduling.PredictionLogSpec(dataset=ingestion.dataset))
    assert refused.value.reason == "LOG_DATASET_TAKEN"
    assert [violation.field for violation in refused.value.fields] == ["log.dataset"]


async def test_predictions_wait_while_ingestion_is_away(
    make_plane: MakePlane, ingestion: Ingestion, name: str
) -> None:
    own = await tabled(make_plane, ingestion, name)
    await own.deploy()
    # Nothing of this version was declared yet.
    own.process.process.kill()
    await own.process.process.wait()
    async with own.plane.client() as client:
        for number in range(20):
            await ask(client, name, request_id=f"waits-{number}")
    # The log of PostgreSQL does not wait.
    waiting = {f"waits-{number}" for number in range(20)}
    await own.plane.until_logged(name, waiting)
    host, port = own.process.target.split(":")
    own.process = await ingestion.start_ready(
        HEADRACE_INGESTION_PRIVACY_KEYS=KEYS, HEADRACE_INGESTION_GRPC_ADDRESS=f"{host}:{port}"
    )
    own.process.target = f"{host}:{port}"
    await own.until_rows(20)
    assert {row["prediction_id"] for row in await own.all_rows()} == waiting


async def test_a_deleted_deployments_last_predictions_become_rows_after_a_restart(
    make_plane: MakePlane, ingestion: Ingestion, name: str
) -> None:
    own = await tabled(make_plane, ingestion, name)
    await own.deploy()
    stub = own.plane.stub
    await stub.DeleteDeployment(inference_pb2.DeleteDeploymentRequest(name=name))

    async def deployments() -> set[str]:
        listed = await stub.ListDeployments(inference_pb2.ListDeploymentsRequest())
        return {deployment.name for deployment in listed.deployments}

    await eventually(deployments, lambda found: name not in found)
    await own.plane.service.stop()
    log = Log(own.plane.service, ingestion.bootstrap, ingestion.dsn, name, "patient-7")
    await log.predicted("last", "patient-7", table=own.table.dataset)
    await own.plane.service.start()
    await own.until_rows(1)


@pytest.mark.kill
@pytest.mark.parametrize("point", FAULT_POINTS)
async def test_a_kill_loses_no_prediction_and_doubles_none(
    make_plane: MakePlane, ingestion: Ingestion, name: str, point: str, tmp_path: Path
) -> None:
    own = await tabled(
        make_plane, ingestion, name, HEADRACE_FAULT=point, HEADRACE_FAULT_ONCE=str(tmp_path / "fired")
    )
    await own.deploy()
    asked = {f"{name}-{number}" for number in range(60)}
    async with own.plane.client() as client:
        await asyncio.gather(*(ask(client, name, request_id=one) for one in sorted(asked)))
    await own.plane.service.killed()
    await own.plane.service.start()
    await own.until_rows(len(asked))
    async with own.plane.client() as client:
        # What comes after it, too.
        await ask(client, name, request_id=f"{name}-after")
    await own.until_rows(len(asked) + 1)
    found = [row["prediction_id"] for row in await own.all_rows()]
    assert sorted(map(str, found)) == sorted({*asked, f"{name}-after"})
    # What it had sent before it died it has sent again, and that was left out.
    again = await own.table.published(SAMPLES, len(asked) + 1)
    assert (len(again) > len(asked) + 1) is (point == "inference.after-table-publish")
