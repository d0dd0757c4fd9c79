"""Explanations over the real RPC. No model has to serve for them: there is neither Triton nor Envoy here."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.component.inference.conftest import inference_service
from tests.support.models import classifier, classifier_signature
from tests.support.services import ServiceProcess
from tests.support.waiting import eventually

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.inference.v1 import inference_pb2_grpc
from headrace.api.ingestion.v1 import ingestion_pb2, versions_pb2, versions_pb2_grpc
from headrace.api.registry.v1 import registry_pb2
from headrace.embedded.parts import free_port
from headrace.errors import (
    FailedPrecondition,
    HeadraceError,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from headrace.events.registry.v1 import events_pb2
from headrace.messaging.events import Event, protobuf_event
from headrace.messaging.producer import Producer
from headrace.messaging.topics import MODEL_VERSIONS, PREDICTIONS
from headrace.objects import ObjectStore
from headrace.rpc.client import channel
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.health import Health

BEFORE = datetime(2026, 1, 2, tzinfo=UTC)
DATASET = "patients"
ROW = [2.0, 1.0, -1.0]


class PlayedProfiles(versions_pb2_grpc.DatasetVersionServiceServicer):
    """The ingestion service, as far as explanations know it: its profile says that `a` is typically 0.5."""

    def __init__(self, target: str) -> None:
        self.target = target

    async def GetProfile(self, request: Any, context: Any) -> versions_pb2.Profile:
        assert (request.dataset, request.version.number) == (DATASET, 7)
        profile = versions_pb2.Profile()
        field = profile.fields.add(name="a", count=9)
        field.numbers.quantiles.add(rank=0.5, value=0.5)
        return profile


@dataclass
class Explained:
    """An inference service with one deployment; versions are promoted, and never served."""

    service: ServiceProcess
    bootstrap: str
    store: ObjectStore
    deployment: str
    stub: inference_pb2_grpc.InferenceServiceAsyncStub

    async def promote(self, version: int, model: bytes, *, dataset_version: int = 7) -> None:
        path = f"models/{self.deployment}/{version}/model.onnx"
        await self.store.put(path, model)
        promoted = registry_pb2.ModelVersion(
            model=self.deployment,
            version=version,
            artifacts=[
                registry_pb2.Artifact(
                    path="model.onnx",
                    uri=self.store.uri(path),
                    sha256=hashlib.sha256(model).hexdigest(),
                )
            ],
            signature=classifier_signature(),
            lineage=registry_pb2.Lineage(
                dataset_version=ingestion_pb2.DatasetVersion(dataset=DATASET, version=dataset_version)
            ),
        )
        event = protobuf_event(
            events_pb2.ModelVersionPromoted(model_version=promoted),
            type="headrace.registry.model-version-promoted.v1",
            source="headrace/registry",
            subject=self.deployment,
            id=str(uuid.uuid4()),
            time=BEFORE,
        )
        await self._publish(MODEL_VERSIONS, event)

        async def known() -> bool:
            try:
                # Cheaper than an explanation, and answered behind the version.
                await self.explain(version=version, answer_class="no class")
            except HeadraceError as error:
                return error.reason == "UNKNOWN_CLASS"
            return True

        await eventually(known, bool)

    async def predicted(self, name: str, *, subject: str = "", numbers: list[float] | None = None) -> None:
        tensor = {"name": "features", "datatype": "FP32", "shape": [1, 3], "numbers": numbers or []}
        payload = {
            "prediction_id": name,
            "deployment": self.deployment,
            "version": 1,
            "time": BEFORE.isoformat(),
            "seconds": 0.1,
            "inputs": [tensor],
            "outputs": [{"name": "label", "datatype": "INT64", "shape": [1, 1], "numbers": [1]}],
            "subject": subject,
        }
        event = Event(
            id=str(uuid.uuid4()),
            source="headrace/triton",
            type="headrace.inference.prediction.v1",
            subject=self.deployment,
            time=BEFORE,
            data=json.dumps(payload).encode(),
            content_type="application/json",
        )
        await self._publish(PREDICTIONS, event)

        async def logged() -> bool:
            request = api.ListPredictionsRequest(deployment=self.deployment)
            return any(found.id == name for found in (await self.stub.ListPredictions(request)).predictions)

        await eventually(logged, bool)

    async def explain(self, *, timeout: float = 60.0, **request: Any) -> api.Explanation:
        """Explain `ROW`, by version 1 and against zeros where nothing else is asked."""
        if "prediction" not in request:
            request.setdefault("rows", api.InputRows(numbers=ROW))
            request.setdefault("version", 1)
        if "baseline_row" not in request:
            request.setdefault("baseline_kind", api.BASELINE_KIND_ZERO)
        return await self.stub.Explain(
            api.ExplainRequest(deployment=self.deployment, **request), timeout=timeout
        )

    async def refused(self, **request: Any) -> tuple[type[HeadraceError], str]:
        with pytest.raises(HeadraceError) as caught:
            await self.explain(**request)
        return type(caught.value), caught.value.reason

    async def _publish(self, topic: str, event: Event) -> None:
        async with Producer(self.bootstrap, client_id="tests", idempotence=False) as producer:
            await producer.publish(topic, self.deployment, event)


MakeExplained = Callable[..., Awaitable[Explained]]


@pytest.fixture
async def make_explained(
    kafka_bootstrap: str, postgres_dsn: str, store_uri: str, tmp_path: Path
) -> AsyncIterator[MakeExplained]:
    async with AsyncExitStack() as stack:

        async def make(**settings: str) -> Explained:
            service = inference_service(tmp_path, kafka_bootstrap, postgres_dsn, store_uri, **settings)
            stack.push_async_callback(service.stop)
            await service.start()
            opened = await stack.enter_async_context(channel(service.target))
            own = Explained(
                service,
                kafka_bootstrap,
                ObjectStore.from_uri(store_uri),
                f"model-{uuid.uuid4().hex[:8]}",
                inference_pb2_grpc.InferenceServiceStub(opened),
            )
            await own.stub.ApplyDeployment(
                api.ApplyDeploymentRequest(name=own.deployment, model=own.deployment)
            )
            return own

        yield make


@asynccontextmanager
async def played_profiles(target: str) -> AsyncIterator[None]:
    binding = ServiceBinding(
        versions_pb2_grpc.add_DatasetVersionServiceServicer_to_server,
        PlayedProfiles(target),
        "headrace.api.ingestion.v1.DatasetVersionService",
    )
    async with serve(target, [binding], health=Health(), drain_seconds=0.2):
        yield


async def test_rows_and_predictions_are_explained_as_the_proto_says(make_explained: MakeExplained) -> None:
    profiles = f"127.0.0.1:{free_port()}"
    explained = await make_explained(
        HEADRACE_INFERENCE_INGESTION_TARGET=profiles, HEADRACE_INFERENCE_EXPLAIN_ROWS="2"
    )
    await explained.promote(1, classifier(3.0))
    found = await explained.explain()
    assert (found.version, found.baseline) == (1, api.BASELINE_KIND_ZERO)
    [row] = found.rows
    # The scores are 2 and 6, for the classes 0 and 1; the baseline's are both 0.
    assert (row.output, row.answer_class) == ("probabilities", "1")
    assert row.answer == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-6)
    assert row.baseline_answer == pytest.approx(0.5)
    assert row.method == api.EXPLANATION_METHOD_INTEGRATED_GRADIENTS
    assert row.stopped == api.EXPLANATION_STOP_CONVERGED
    # All weights are one, so each has its value's share of the sum.
    whole = row.answer - row.baseline_answer
    assert [one.amount for one in row.attributions] == pytest.approx([whole, whole / 2, -whole / 2], abs=0.01)
    assert [(one.feature, one.value, one.baseline_value) for one in row.attributions] == [
        ("a", "2", "0"),
        ("b", "1", "0"),
        ("c", "-1", "0"),
    ]

    # Other rows, another class, another method, another baseline.
    rows = api.InputRows(numbers=[*ROW, 0.5, 0.5, 0.5])
    sampled = await explained.explain(
        rows=rows,
        method=api.EXPLANATION_METHOD_SHAPLEY_SAMPLING,
        answer_class="0",
        baseline_row=api.InputRows(numbers=[0.5, 0.5, 0.5]),
    )
    assert sampled.baseline == api.BASELINE_KIND_ROW
    first, second = sampled.rows
    assert first.answer == pytest.approx(1 - row.answer, abs=1e-6)
    assert first.completeness_gap == pytest.approx(0, abs=1e-6)
    assert [one.amount for one in second.attributions] == [0, 0, 0]

    # A prediction, by the version that answered; then it is erased, and nothing explains it any more.
    await explained.predicted("theirs", subject="subject-1", numbers=ROW)
    await explained.predicted("large")
    assert (await explained.explain(prediction="theirs")).rows == found.rows
    assert await explained.refused(prediction="large") == (FailedPrecondition, "INPUTS_NOT_STORED")
    erasure = api.ErasePredictionsRequest(erasure=uuid.uuid4().hex, dataset=DATASET, subject="subject-1")
    await explained.stub.ErasePredictions(erasure)
    assert await explained.refused(prediction="theirs") == (NotFound, "PREDICTION_NOT_FOUND")

    assert [
        await explained.refused(version=9),
        await explained.refused(version=0),
        await explained.refused(rows=api.InputRows(numbers=ROW * 3)),
        await explained.refused(baseline_row=api.InputRows(numbers=ROW * 2)),
        await explained.refused(rows=api.InputRows(numbers=[1.0])),
        await explained.refused(max_evaluations=10**9),
    ] == [
        (NotFound, "VERSION_NOT_FOUND"),
        (FailedPrecondition, "NO_VERSION_LIVE"),
        (InvalidArgument, "TOO_MANY_ROWS"),
        (InvalidArgument, "TOO_MANY_ROWS"),
        (InvalidArgument, "INVALID_ROWS"),
        (InvalidArgument, "TOO_MANY_EVALUATIONS"),
    ]

    # The training data's profile is asked for, where there is one.
    await explained.promote(2, classifier(3.0), dataset_version=0)
    wanted = api.BASELINE_KIND_TRAINING
    assert await explained.refused(baseline_kind=wanted) == (Unavailable, "BASELINE_UNAVAILABLE")
    assert await explained.refused(baseline_kind=wanted, version=2) == (
        FailedPrecondition,
        "BASELINE_UNKNOWN",
    )
    async with played_profiles(profiles):

        async def asked() -> api.Explanation | None:
            try:
                return await explained.explain(baseline_kind=wanted)
            except Unavailable:
                # It was refused a moment ago, and connects again after a pause.
                return None

        by_profile = await eventually(asked, lambda found: found is not None)
    assert by_profile is not None
    assert by_profile.baseline == wanted
    # What has no profile is compared with zero.
    assert [one.baseline_value for one in by_profile.rows[0].attributions] == ["0.5", "0", "0"]
