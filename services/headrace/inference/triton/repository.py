"""Triton's model repository: a deployment's folder holds a configuration and a folder for each version."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from headrace.errors import InvalidArgument, NotFound
from headrace.inference.domain.class_names import class_names
from headrace.inference.domain.deployments import ServedVersion, Tensor, row_values
from headrace.inference.domain.serving import Serving, largest_batch
from headrace.inference.use_cases.ports import LoadError
from headrace.messaging.topics import PREDICTIONS
from headrace.objects import ObjectStore
from headrace.runtime.resources import deploy_path

# The parameter of a model's configuration that says how it is served.
SERVING = "serving"

# What model.py is told of its version.
VERSION = "version.json"
# The names that Triton's own classification answers with; one file for all versions.
LABELS = "labels.txt"

_DATA_TYPES = {"BYTES": "STRING"}


class ModelRepository:
    """Writes what Triton reads. The folder is shared with Triton."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self._folder = folder
        self._store = store

    async def put(
        self,
        deployment: str,
        versions: Sequence[ServedVersion],
        serving: Serving,
        *,
        prediction_topic: str = PREDICTIONS,
    ) -> None:
        """Make the folder hold these versions, to be served so. Without a topic no prediction is logged.

        Raises LoadError where a file is missing or is not the registered one, Unavailable where the store is.
        """
        for version in versions:
            await self._put_version(deployment, version)
        folder = self._folder / deployment
        _replace(folder / LABELS, "".join(f"{name}\n" for name in _labels(versions)).encode())
        text = model_configuration(deployment, versions, serving, prediction_topic=prediction_topic)
        _replace(folder / "config.pbtxt", text.encode())

    def drop_others(self, deployment: str, versions: Sequence[ServedVersion]) -> None:
        """Remove the folders of versions that are no longer served."""
        kept = {str(version.version) for version in versions}
        for folder in (self._folder / deployment).iterdir():
            if folder.is_dir() and folder.name not in kept:
                shutil.rmtree(folder)

    def deployments(self, prefix: str) -> list[str]:
        """Names of folders that begin so."""
        return [folder.name for folder in self._folder.glob(f"{prefix}*")]

    def remove(self, deployment: str) -> None:
        """Remove a deployment's folder."""
        shutil.rmtree(self._folder / deployment, ignore_errors=True)

    async def _put_version(self, deployment: str, version: ServedVersion) -> None:
        folder = self._folder / deployment / str(version.version)
        model = folder / version.format.file
        folder.mkdir(parents=True, exist_ok=True)
        if not model.exists() or _sha256(model) != version.sha256:
            data = await self._fetch(version.uri)
            found = hashlib.sha256(data).hexdigest()
            if found != version.sha256:
                raise LoadError(f"{version.uri} has SHA-256 {found}, registered was {version.sha256}")
            _replace(model, data)
        for source in sorted(deploy_path("triton").glob("*.py")):
            _replace(folder / source.name, source.read_bytes())
        _replace(folder / VERSION, version_document(version).encode())

    async def _fetch(self, uri: str) -> bytes:
        try:
            return await self._store.get(self._store.path(uri))
        except (NotFound, InvalidArgument) as error:
            # Waiting brings no file back; a store that is away is another matter.
            raise LoadError(str(error)) from error


def version_document(version: ServedVersion) -> str:
    """What `deploy/triton/model.py` is told of its version, as JSON."""
    names = class_names(version)
    return json.dumps(
        {
            "format": version.format,
            "file": version.format.file,
            "classes": {
                "names": names.names,
                "values": names.values,
                "scores": names.scores,
                "added": [tensor.name for tensor in names.added],
            },
        }
    )


def model_configuration(
    deployment: str,
    versions: Sequence[ServedVersion],
    serving: Serving,
    *,
    prediction_topic: str = PREDICTIONS,
) -> str:
    """A deployment's config.pbtxt. Raises LoadError where its versions differ in what they take."""
    newest = versions[-1]
    for version in versions:
        if version.inputs != newest.inputs:
            raise LoadError(
                f"version {version.version} takes {_texts(version.inputs)}, version {newest.version} "
                f"{_texts(newest.inputs)}: one deployment cannot serve both"
            )
    numbers = ", ".join(str(version.version) for version in versions)
    batch_size = min(serving.max_batch_size, largest_batch(row_values(newest.inputs)))
    preferred = ", ".join(str(size) for size in serving.preferred if size <= batch_size)
    return "\n".join(
        [
            f'name: "{deployment}"',
            'backend: "python"',
            f"max_batch_size: {batch_size}",
            *(f"input {_tensor(tensor)}" for tensor in newest.inputs),
            *(f"output {_tensor(tensor, label_file)}" for tensor, label_file in _outputs(versions)),
            f"dynamic_batching {{ preferred_batch_size: [{preferred}]",
            f"  max_queue_delay_microseconds: {serving.queue_microseconds} }}",
            f"instance_group {{ kind: KIND_CPU count: {serving.instances} }}",
            f"version_policy {{ specific {{ versions: [{numbers}] }} }}",
            f'parameters {{ key: "prediction_topic" value {{ string_value: "{prediction_topic}" }} }}',
            f'parameters {{ key: "log_share" value {{ string_value: "{serving.log.share!r}" }} }}',
            f'parameters {{ key: "log_dataset" value {{ string_value: "{serving.log.dataset}" }} }}',
            f'parameters {{ key: "model" value {{ string_value: "{newest.model}" }} }}',
            f'parameters {{ key: "{SERVING}" value {{ string_value: "{serving.text()}" }} }}',
            "",
        ]
    )


def _outputs(versions: Sequence[ServedVersion]) -> list[tuple[Tensor, str]]:
    """The newest version's outputs, each with the file that names its places; most have none."""
    newest = versions[-1]
    names = class_names(newest)
    labels = LABELS if _labels(versions) else ""
    return [
        (_for_all(tensor, versions), labels if tensor.name == names.scores else "")
        for tensor in (*newest.outputs, *names.added)
    ]


def _for_all(tensor: Tensor, versions: Sequence[ServedVersion]) -> Tensor:
    """An output as every version has it: any size where they differ, as scores do where a class was added."""
    shapes = [
        other.shape
        for version in versions
        for other in version.outputs
        if other.name == tensor.name and len(other.shape) == len(tensor.shape)
    ]
    common = tuple(
        size if all(shape[place] == size for shape in shapes) else -1
        for place, size in enumerate(tensor.shape)
    )
    return replace(tensor, shape=common)


def _labels(versions: Sequence[ServedVersion]) -> tuple[str, ...]:
    """Names of the places in every version's scores; none where versions differ, or a line holds none."""
    names = {class_names(version).names for version in versions}
    common = names.pop()
    return () if names or any("\n" in name for name in common) else common


def _tensor(tensor: Tensor, label_file: str = "") -> str:
    # Triton puts the batch in front by itself; a vector of answers, one a row, is a column to its clients.
    sizes = ", ".join(map(str, tensor.shape[1:])) or "1"
    data_type = _DATA_TYPES.get(tensor.datatype, tensor.datatype)
    labels = f' label_filename: "{label_file}"' if label_file else ""
    return f'{{ name: "{tensor.name}" data_type: TYPE_{data_type} dims: [{sizes}]{labels} }}'


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
