"""Results into the registry: version, artifacts, commit; each step can be repeated."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from headrace.api.registry.v1 import registry_pb2 as api
from headrace.api.registry.v1 import registry_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import DataLoss, DeadlineExceeded, Unavailable
from headrace.rpc import deadline
from headrace.rpc.artifacts import artifact_parts
from headrace.telemetry import names, tracing
from headrace.training.domain.runs import Run
from headrace.training.run.report import MODEL_FILE, PREPROCESS_FILE, REPORT_FILE, Report, Tensor

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
# An upload takes as long as it takes; a stuck one is given up and tried again.
UPLOAD_SECONDS = 600.0
ARTIFACTS = (MODEL_FILE, PREPROCESS_FILE, REPORT_FILE)


class RegistryRegistrar:
    """Registers through the registry's API."""

    def __init__(self, stub: registry_pb2_grpc.RegistryServiceAsyncStub) -> None:
        self._stub = stub

    async def register(self, task: scheduling_pb2.Task, run: Run, folder: Path) -> tuple[int, str]:
        """Register a finished run's results; the model version and what became of it.

        The job's id is the request's: whoever repeats this for the same job gets the same version. Waits
        for a registry that is away. Raises HeadraceError for one that refuses.
        """
        with (
            deadline.unbounded(),
            tracing.span(
                names.SPAN_REGISTER_RESULT,
                parent=run.traceparent,
                attributes={names.RUN: run.id, names.MODEL: run.pipeline},
            ),
        ):
            while True:
                try:
                    return await self._register(task, run, folder)
                except (Unavailable, DeadlineExceeded, DataLoss) as error:
                    logger.warning("run %s is not registered yet: %s", run.id, error)
                    await asyncio.sleep(RETRY_SECONDS)

    async def _register(self, task: scheduling_pb2.Task, run: Run, folder: Path) -> tuple[int, str]:
        report = Report.read(folder)
        created = await self._stub.CreateModelVersion(
            api.CreateModelVersionRequest(
                model=run.pipeline,
                request_id=run.job,
                lineage=api.Lineage(
                    dataset_version=task.dataset_version,
                    job=run.job,
                    run=run.id,
                    recipe=report.recipe,
                    parameters=task.training.parameters,
                    code_version=report.code_version,
                ),
                metrics=dict(run.metrics),
                signature=api.Signature(
                    inputs=map(_tensor, report.signature.inputs),
                    outputs=map(_tensor, report.signature.outputs),
                    features=report.signature.features,
                    classes=report.signature.classes,
                    texts=report.signature.texts,
                ),
            )
        )
        if created.state != api.MODEL_VERSION_STATE_UPLOADING:
            # Judged already: whoever registered it died before it could say so.
            return created.version, _verdict(created)
        # A run of a release that prepared no features may have waited for this one.
        artifacts = [path for path in ARTIFACTS if path != PREPROCESS_FILE or (folder / path).exists()]
        for path in artifacts:
            await self._stub.UploadArtifact(
                artifact_parts(created.model, created.version, folder / path), timeout=UPLOAD_SECONDS
            )
        committed = await self._stub.CommitModelVersion(
            api.CommitModelVersionRequest(model=created.model, version=created.version, artifacts=artifacts)
        )
        return committed.version, _verdict(committed)


def _verdict(version: api.ModelVersion) -> str:
    if version.state == api.MODEL_VERSION_STATE_PROMOTED:
        return f"version {version.version} is promoted"
    missed = "; ".join(result.message for result in version.gate_results if not result.passed)
    return f"version {version.version} is refused: {missed}"


def _tensor(tensor: Tensor) -> api.TensorSpec:
    return api.TensorSpec(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
