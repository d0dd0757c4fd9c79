"""Triton's model repository: a deployment's folder holds a configuration and a folder for each version."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from headrace.errors import InvalidArgument, NotFound
from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.use_cases.ports import LoadError
from headrace.messaging.topics import PREDICTIONS
from headrace.objects import ObjectStore
from headrace.runtime.resources import deploy_path

MAX_BATCH_SIZE = 64
# Of all inputs of a batch, which is copied a few times: 64 MiB of FP32. Of large images fewer rows fit.
MAX_BATCH_VALUES = 1 << 24

_DATA_TYPES = {"BYTES": "STRING"}


class ModelRepository:
    """Writes what Triton reads. The folder is shared with Triton."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self._folder = folder
        self._store = store

    async def put(self, deployment: str, versions: Sequence[ServedVersion]) -> None:
        """Make the folder hold these versions.

        Raises LoadError where a file is missing or is not the registered one, Unavailable where the store is.
        """
        for version in versions:
            await self._put_version(deployment, version)
        configuration = self._folder / deployment / "config.pbtxt"
        _replace(configuration, model_configuration(deployment, versions).encode())

    def drop_others(self, deployment: str, versions: Sequence[ServedVersion]) -> None:
        """Remove the folders of versions that are no longer served."""
        kept = {str(version.version) for version in versions}
        for folder in (self._folder / deployment).iterdir():
            if folder.is_dir() and folder.name not in kept:
                shutil.rmtree(folder)

    def remove(self, deployment: str) -> None:
        """Remove a deployment's folder."""
        shutil.rmtree(self._folder / deployment, ignore_errors=True)

    async def _put_version(self, deployment: str, version: ServedVersion) -> None:
        folder = self._folder / deployment / str(version.version)
        model = folder / "model.onnx"
        folder.mkdir(parents=True, exist_ok=True)
        if not model.exists() or _sha256(model) != version.sha256:
            data = await self._fetch(version.uri)
            found = hashlib.sha256(data).hexdigest()
            if found != version.sha256:
                raise LoadError(f"{version.uri} has SHA-256 {found}, registered was {version.sha256}")
            _replace(model, data)
        for source in sorted(deploy_path("triton").glob("*.py")):
            _replace(folder / source.name, source.read_bytes())

    async def _fetch(self, uri: str) -> bytes:
        try:
            return await self._store.get(self._store.path(uri))
        except (NotFound, InvalidArgument) as error:
            # Waiting brings no file back; a store that is away is another matter.
            raise LoadError(str(error)) from error


def model_configuration(deployment: str, versions: Sequence[ServedVersion]) -> str:
    """A deployment's config.pbtxt. Raises LoadError where its versions differ in what they take."""
    newest = versions[-1]
    for version in versions:
        if version.inputs != newest.inputs:
            raise LoadError(
                f"version {version.version} takes {_texts(version.inputs)}, version {newest.version} "
                f"{_texts(newest.inputs)}: one deployment cannot serve both"
            )
    numbers = ", ".join(str(version.version) for version in versions)
    return "\n".join(
        [
            f'name: "{deployment}"',
            'backend: "python"',
            f"max_batch_size: {_max_batch_size(newest.inputs)}",
            *(f"input {_tensor(tensor)}" for tensor in newest.inputs),
            *(f"output {_tensor(tensor)}" for tensor in newest.outputs),
            "dynamic_batching { }",
            "instance_group { kind: KIND_CPU count: 1 }",
            f"version_policy {{ specific {{ versions: [{numbers}] }} }}",
            f'parameters {{ key: "prediction_topic" value {{ string_value: "{PREDICTIONS}" }} }}',
            "",
        ]
    )


def _max_batch_size(inputs: Sequence[Tensor]) -> int:
    values = sum(math.prod(tensor.shape[1:]) for tensor in inputs)
    return max(1, min(MAX_BATCH_SIZE, MAX_BATCH_VALUES // max(1, values)))


def _tensor(tensor: Tensor) -> str:
    # Triton puts the batch in front by itself; a vector of answers, one a row, is a column to its clients.
    sizes = ", ".join(map(str, tensor.shape[1:])) or "1"
    data_type = _DATA_TYPES.get(tensor.datatype, tensor.datatype)
    return f'{{ name: "{tensor.name}" data_type: TYPE_{data_type} dims: [{sizes}] }}'


def _texts(tensors: Sequence[Tensor]) -> str:
    return ", ".join(tensor.text() for tensor in tensors)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: Triton may read it at any moment."""
    partial = path.with_name(path.name + ".new")
    partial.write_bytes(data)
    partial.replace(path)
