"""What is registered of a finished run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from tests.support.reports import a_report

from headrace.api.registry.v1 import registry_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.training.domain.runs import Run
from headrace.training.registrar import RegistryRegistrar
from headrace.training.run.report import MODEL_FILE, PREPROCESS_FILE, REPORT_FILE

if TYPE_CHECKING:
    from headrace.api.registry.v1.registry_pb2_grpc import RegistryServiceAsyncStub

RUN = Run(
    id="job-1",
    job="job",
    attempt=1,
    pipeline="p",
    node="n",
    traceparent="",
    start_time=datetime(2026, 1, 1, tzinfo=UTC),
)


class Registry:
    """Takes one version."""

    def __init__(self) -> None:
        self.uploaded: list[str] = []
        self.committed: list[str] = []

    async def CreateModelVersion(self, request: api.CreateModelVersionRequest) -> api.ModelVersion:
        return api.ModelVersion(model=request.model, version=1, state=api.MODEL_VERSION_STATE_UPLOADING)

    async def UploadArtifact(self, parts: Iterator[api.UploadArtifactRequest], timeout: float) -> None:
        self.uploaded += [part.header.artifact.path for part in parts if part.HasField("header")]

    async def CommitModelVersion(self, request: api.CommitModelVersionRequest) -> api.ModelVersion:
        self.committed = list(request.artifacts)
        return api.ModelVersion(version=request.version, state=api.MODEL_VERSION_STATE_PROMOTED)


@pytest.mark.parametrize("prepared", [[PREPROCESS_FILE], []])
async def test_a_run_is_registered_with_the_files_that_its_release_wrote(
    tmp_path: Path, prepared: list[str]
) -> None:
    for name in (MODEL_FILE, *prepared):
        (tmp_path / name).write_bytes(b"content")
    a_report().write(tmp_path)
    registry = Registry()
    registrar = RegistryRegistrar(cast("RegistryServiceAsyncStub", registry))
    version, _ = await registrar.register(scheduling_pb2.Task(), RUN, tmp_path)
    assert version == 1
    assert registry.uploaded == registry.committed == [MODEL_FILE, *prepared, REPORT_FILE]
