"""Models that were trained elsewhere, into the registry."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.client.client import HeadraceClient
from headrace.errors import InvalidArgument, NotFound
from headrace.model_formats import ModelFormat
from headrace.rpc.artifacts import artifact_parts
from headrace.rpc.model_formats import to_model_format

# An upload takes as long as it takes.
UPLOAD_SECONDS: Final = 3600.0
# Of SHA-256, enough that no two imports share it.
_ID_DIGITS: Final = 32


def format_of(file: Path) -> ModelFormat:
    """The format that a file's ending says, or that it is a folder.

    Raises InvalidArgument UNKNOWN_MODEL_FORMAT.
    """
    if file.is_dir():
        return ModelFormat.PYTHON
    for form in ModelFormat:
        if file.suffix == Path(form.file).suffix:
            return form
    endings = ", ".join(Path(form.file).suffix for form in ModelFormat)
    raise InvalidArgument(
        "UNKNOWN_MODEL_FORMAT", f"{file} ends in none of {endings}: say its format (--format)"
    )


async def import_model(
    client: HeadraceClient,
    model: str,
    file: Path,
    form: ModelFormat,
    signature: registry.Signature,
    metrics: Mapping[str, float],
) -> registry.ModelVersion:
    """Register a file as a model's next version, and return it with its verdict.

    A model that does not exist is made, without gates; one that does judges by its own, on `metrics` by
    "split/metric". The same import again is answered the same version, and one that was cut off is finished.
    Raises InvalidArgument UNREADABLE_FILE, and what the registry raises.
    """
    request_id = await asyncio.to_thread(_request_id, file, form, signature, metrics)
    try:
        await client.registry.GetModel(registry.GetModelRequest(name=model))
    except NotFound:
        await client.registry.ApplyModel(registry.ApplyModelRequest(name=model))
    created = await client.registry.CreateModelVersion(
        registry.CreateModelVersionRequest(
            model=model,
            request_id=request_id,
            lineage=registry.Lineage(),
            metrics=metrics,
            signature=signature,
            format=to_model_format(form),
        )
    )
    if created.state != registry.MODEL_VERSION_STATE_UPLOADING:
        return created
    await client.registry.UploadArtifact(
        artifact_parts(model, created.version, file, path=form.file), timeout=UPLOAD_SECONDS
    )
    return await client.registry.CommitModelVersion(
        registry.CommitModelVersionRequest(model=model, version=created.version, artifacts=[form.file])
    )


async def deploy_model(client: HeadraceClient, model: str, deployment: str) -> bool:
    """Serve a model's newest promoted version, and later ones; False where the deployment does so already.

    How that one rolls versions out is left as it is. Raises NotFound MODEL_NOT_FOUND, and
    FailedPrecondition DEPLOYMENT_OF_OTHER_MODEL.
    """
    await client.registry.GetModel(registry.GetModelRequest(name=model))
    with suppress(NotFound):
        known = await client.inference.GetDeployment(inference.GetDeploymentRequest(name=deployment))
        if known.model == model:
            return False
    await client.inference.ApplyDeployment(inference.ApplyDeploymentRequest(name=deployment, model=model))
    return True


def _request_id(
    file: Path, form: ModelFormat, signature: registry.Signature, metrics: Mapping[str, float]
) -> str:
    try:
        with file.open("rb") as data:
            digest = hashlib.file_digest(data, "sha256")
    except OSError as error:
        raise InvalidArgument("UNREADABLE_FILE", f"{file} cannot be read: {error}") from error
    digest.update(form.encode())
    digest.update(signature.SerializeToString(deterministic=True))
    digest.update(repr(sorted(metrics.items())).encode())
    return f"import-{digest.hexdigest()[:_ID_DIGITS]}"
