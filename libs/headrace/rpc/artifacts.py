"""A file as the registry's UploadArtifact takes it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from headrace.api.registry.v1 import registry_pb2 as api

CHUNK_BYTES: Final = 1 << 20


def artifact_parts(
    model: str, version: int, file: Path, *, path: str = ""
) -> Iterator[api.UploadArtifactRequest]:
    """An artifact's header, then its bytes; `path` is its name in the version, the file's own where empty."""
    with file.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
        artifact = api.Artifact(path=path or file.name, size=file.stat().st_size, sha256=digest)
        header = api.UploadArtifactRequest.Header(model=model, version=version, artifact=artifact)
        yield api.UploadArtifactRequest(header=header)
        data.seek(0)
        while chunk := data.read(CHUNK_BYTES):
            yield api.UploadArtifactRequest(chunk=chunk)
