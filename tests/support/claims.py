"""Claim checks as producers make them, and an object store in memory for their payloads."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from headrace.errors import NotFound, Unavailable
from headrace.ingestion.use_cases.fetch_claims import FetchClaims

Headers = list[tuple[str, bytes]]
ROOT = "s3://bucket/stack"


def claim_headers(payload: bytes, reference: str, **changes: str) -> Headers:
    """The headers that claim a payload from an address."""
    attributes = {
        "dataref": reference,
        "datahash": f"sha256:{hashlib.sha256(payload).hexdigest()}",
        "datasize": str(len(payload)),
        **changes,
    }
    return [(f"ce_{name}", value.encode()) for name, value in attributes.items() if value]


@dataclass
class FakePayloads:
    """Payloads by their paths, with the time at which each was written."""

    objects: dict[str, bytes] = field(default_factory=dict)
    written: dict[str, datetime] = field(default_factory=dict)
    folder: str = f"{ROOT}/claims/"
    away: bool = False

    def put(self, name: str, payload: bytes) -> str:
        self.objects[f"claims/{name}"] = payload
        return f"{self.folder}{name}"

    def path(self, reference: str) -> str | None:
        return reference.removeprefix(f"{ROOT}/") if reference.startswith(self.folder) else None

    async def size(self, path: str) -> int:
        return len(self._found(path))

    async def read(self, path: str, size: int) -> AsyncIterator[bytes]:
        payload = self._found(path)
        yield payload[: size // 2]
        yield payload[size // 2 : size]

    async def older(self, before: datetime) -> AsyncIterator[str]:
        for path, moment in list(self.written.items()):
            if moment < before:
                yield path

    async def remove(self, path: str) -> None:
        del self.objects[path]

    def _found(self, path: str) -> bytes:
        if self.away:
            raise Unavailable("STORE_UNAVAILABLE", "the object store is away")
        if path not in self.objects:
            raise NotFound("OBJECT_NOT_FOUND", path)
        return self.objects[path]


def claims_of(payloads: FakePayloads, max_bytes: int = 1000) -> FetchClaims:
    return FetchClaims(payloads, max_bytes=max_bytes)
