"""RPC messages to use cases and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from headrace.api.registry.v1 import registry_pb2 as api
from headrace.api.registry.v1 import registry_pb2_grpc
from headrace.errors import HeadraceError, InvalidArgument
from headrace.registry.domain.gates import passed
from headrace.registry.domain.models import Artifact
from headrace.registry.messages import (
    artifact_message,
    gate_from,
    gate_result_message,
    model_message,
    version_message,
)
from headrace.registry.use_cases.registry import Registry
from headrace.rpc import paging
from headrace.rpc.model_formats import from_model_format

# Versions below this are all versions.
NEWEST = 2**62


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """The registry's API; the proto says what each method does."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ApplyModel(self, request: api.ApplyModelRequest, context: Any) -> api.Model:
        """Create a model or change its gates."""
        gates = [gate_from(gate) for gate in request.gates]
        return model_message(await self._registry.apply_model(request.name, gates))

    async def GetModel(self, request: api.GetModelRequest, context: Any) -> api.Model:
        """One model."""
        return model_message(await self._registry.model(request.name))

    async def ListModels(self, request: api.ListModelsRequest, context: Any) -> api.ListModelsResponse:
        """Models by name."""
        size = paging.page_size(request.page_size)
        position = paging.decode_token(request.page_token, str)
        rows = await self._registry.models(str(position[0]) if position else "", size + 1)
        page, token = paging.cut(rows, size, lambda model: (model.name,))
        return api.ListModelsResponse(models=map(model_message, page), next_page_token=token)

    async def CreateModelVersion(
        self, request: api.CreateModelVersionRequest, context: Any
    ) -> api.ModelVersion:
        """Open a version."""
        version = await self._registry.create(
            request.model,
            request.request_id,
            measured=dict(request.metrics),
            lineage=request.lineage.SerializeToString(deterministic=True),
            signature=request.signature.SerializeToString(deterministic=True),
            form=from_model_format(request.format),
        )
        return version_message(version)

    async def UploadArtifact(
        self, request_iterator: AsyncIterator[api.UploadArtifactRequest], context: Any
    ) -> api.Artifact:
        """Store an artifact: its header, then its bytes."""
        try:
            return await self._upload(request_iterator)
        except HeadraceError:
            # A client that still writes would hear that it could not, and not why.
            async for _ in request_iterator:
                pass
            raise

    async def _upload(self, request_iterator: AsyncIterator[api.UploadArtifactRequest]) -> api.Artifact:
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("HEADER_MISSING", "the first message must hold the artifact's header")
        declared = first.header.artifact
        artifact = await self._registry.upload(
            first.header.model,
            first.header.version,
            Artifact(declared.path, declared.size, declared.sha256, uri=""),
            _chunks(request_iterator),
        )
        return artifact_message(artifact)

    async def CommitModelVersion(
        self, request: api.CommitModelVersionRequest, context: Any
    ) -> api.ModelVersion:
        """Close and judge a version."""
        return version_message(await self._registry.commit(request.model, request.version, request.artifacts))

    async def EvaluateGates(
        self, request: api.EvaluateGatesRequest, context: Any
    ) -> api.EvaluateGatesResponse:
        """Judge a version as the gates are now."""
        results = await self._registry.evaluate(request.model, request.version)
        return api.EvaluateGatesResponse(
            results=[gate_result_message(result) for result in results], passed=passed(results)
        )

    async def GetModelVersion(self, request: api.GetModelVersionRequest, context: Any) -> api.ModelVersion:
        """One version, by number or alias."""
        match request.WhichOneof("which"):
            case "version":
                version = await self._registry.version(request.model, request.version)
            case "alias":
                version = await self._registry.version_at(request.model, request.alias)
            case _:
                raise InvalidArgument("VERSION_MISSING", "name a version or an alias")
        return version_message(version)

    async def ListModelVersions(
        self, request: api.ListModelVersionsRequest, context: Any
    ) -> api.ListModelVersionsResponse:
        """Versions, newest first."""
        size = paging.page_size(request.page_size)
        position = paging.decode_token(request.page_token, int)
        before = int(position[0]) if position else NEWEST
        rows = await self._registry.versions(request.model, before, size + 1)
        page, token = paging.cut(rows, size, lambda version: (version.number,))
        return api.ListModelVersionsResponse(versions=map(version_message, page), next_page_token=token)

    async def DownloadArtifact(
        self, request: api.DownloadArtifactRequest, context: Any
    ) -> AsyncIterator[api.DownloadArtifactResponse]:
        """An artifact's bytes."""
        async for chunk in self._registry.download(request.model, request.version, request.path):
            yield api.DownloadArtifactResponse(chunk=chunk)

    async def SetAlias(self, request: api.SetAliasRequest, context: Any) -> api.Model:
        """Point an alias at a version."""
        return model_message(await self._registry.set_alias(request.model, request.alias, request.version))


async def _chunks(requests: AsyncIterator[api.UploadArtifactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("part") != "chunk":
            raise InvalidArgument("HEADER_REPEATED", "only the first message holds a header")
        yield request.chunk
