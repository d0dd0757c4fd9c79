"""Models and versions as rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Final

import asyncpg

from headrace.errors import NotFound
from headrace.model_formats import ModelFormat
from headrace.postgres import Connection
from headrace.postgres.queries import load_queries
from headrace.registry.domain.audit import AuditEntry
from headrace.registry.domain.gates import Gate, GateResult
from headrace.registry.domain.models import Artifact, Model, Version, VersionState

QUERIES: Final = load_queries("headrace.registry.storage")


class Repository:
    """Reads and writes within the connection's transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def insert_model(self, name: str, gates: Sequence[Gate], now: datetime) -> bool:
        """Create the model; False where there is one already."""
        rows = [asdict(gate) for gate in gates]
        return await self._connection.fetchval(QUERIES["insert_model"], name, rows, now) is not None

    async def change_gates(self, name: str, gates: Sequence[Gate], now: datetime) -> None:
        """Ask other gates of versions to come."""
        await self._connection.execute(QUERIES["change_gates"], name, [asdict(gate) for gate in gates], now)

    async def model(self, name: str, *, lock: bool = False) -> Model:
        """One model; with `lock`, nobody else changes it until the transaction ends. Raises NotFound."""
        row = await self._connection.fetchrow(QUERIES["lock_model" if lock else "get_model"], name)
        if row is None:
            raise NotFound("MODEL_NOT_FOUND", f"there is no model {name!r}; a pipeline makes its model")
        return (await self._models([row]))[0]

    async def models(self, after: str, limit: int) -> list[Model]:
        """Models by name."""
        return await self._models(await self._connection.fetch(QUERIES["list_models"], after, limit))

    async def set_alias(self, model: str, alias: str, version: int) -> None:
        """Point an alias at a version; 0 removes it."""
        if version == 0:
            await self._connection.execute(QUERIES["remove_alias"], model, alias)
        else:
            await self._connection.execute(QUERIES["set_alias"], model, alias, version)

    async def version_of_request(self, model: str, request_id: str) -> int | None:
        """The version that a request made before, if it did."""
        found: int | None = await self._connection.fetchval(QUERIES["find_by_request"], model, request_id)
        return found

    async def insert_version(
        self,
        model: str,
        request_id: str,
        *,
        metrics: Mapping[str, float],
        lineage: bytes,
        signature: bytes,
        form: ModelFormat,
        traceparent: str,
        now: datetime,
    ) -> int:
        """Open the next version; returns its number."""
        number: int = await self._connection.fetchval(QUERIES["next_version"], model)
        await self._connection.execute(
            QUERIES["insert_version"],
            model,
            number,
            request_id,
            dict(metrics),
            lineage,
            signature,
            traceparent,
            now,
            form,
        )
        return number

    async def version(self, model: str, number: int) -> Version:
        """One version. Raises NotFound."""
        row = await self._connection.fetchrow(QUERIES["get_version"], model, number)
        if row is None:
            raise NotFound("MODEL_VERSION_NOT_FOUND", f"model {model!r} has no version {number}")
        return (await self._versions(model, [row]))[0]

    async def versions(self, model: str, before: int, limit: int) -> list[Version]:
        """Versions below a number, newest first."""
        rows = await self._connection.fetch(QUERIES["list_versions"], model, before, limit)
        return await self._versions(model, rows)

    async def describe_version(self, version: Version) -> None:
        """Store an open version's metrics, lineage, signature and format."""
        await self._connection.execute(
            QUERIES["describe_version"],
            version.model,
            version.number,
            dict(version.metrics),
            version.lineage,
            version.signature,
            version.format,
        )

    async def close_version(self, version: Version) -> None:
        """Store a verdict."""
        await self._connection.execute(
            QUERIES["close_version"],
            version.model,
            version.number,
            version.state,
            [asdict(result) for result in version.gate_results],
            version.close_time,
        )

    async def put_artifact(self, model: str, number: int, artifact: Artifact) -> None:
        """Record an artifact that lies in the object store."""
        await self._connection.execute(
            QUERIES["put_artifact"],
            model,
            number,
            artifact.path,
            artifact.size,
            artifact.sha256,
            artifact.uri,
        )

    async def audit(self, entry: AuditEntry) -> None:
        """Record what was done."""
        await self._connection.execute(
            QUERIES["insert_audit_entry"],
            entry.model,
            entry.action,
            entry.version,
            entry.details,
            entry.traceparent,
            entry.time,
        )

    async def _models(self, rows: Sequence[asyncpg.Record]) -> list[Model]:
        names = [row["name"] for row in rows]
        aliases: dict[str, dict[str, int]] = {name: {} for name in names}
        for row in await self._connection.fetch(QUERIES["list_aliases"], names):
            aliases[row["model"]][row["alias"]] = row["version"]
        return [
            Model(
                name=row["name"],
                gates=tuple(Gate(**gate) for gate in row["gates"]),
                create_time=row["create_time"],
                update_time=row["update_time"],
                aliases=aliases[row["name"]],
                latest_version=row["latest_version"],
            )
            for row in rows
        ]

    async def _versions(self, model: str, rows: Sequence[asyncpg.Record]) -> list[Version]:
        artifacts: dict[int, list[Artifact]] = {row["version"]: [] for row in rows}
        for row in await self._connection.fetch(QUERIES["list_artifacts"], model, list(artifacts)):
            artifacts[row["version"]].append(Artifact(row["path"], row["size"], row["sha256"], row["uri"]))
        return [
            Version(
                model=model,
                number=row["version"],
                state=VersionState(row["state"]),
                # JSON has no NaN: a metric that was none was stored as null.
                metrics={
                    name: math.nan if value is None else value for name, value in row["metrics"].items()
                },
                lineage=row["lineage"],
                signature=row["signature"],
                traceparent=row["traceparent"],
                create_time=row["create_time"],
                close_time=row["close_time"],
                artifacts=tuple(artifacts[row["version"]]),
                gate_results=tuple(_gate_result(result) for result in row["gate_results"]),
                format=ModelFormat(row["format"]),
            )
            for row in rows
        ]


def _gate_result(row: Mapping[str, object]) -> GateResult:
    gate, value = row["gate"], row["value"]
    assert isinstance(gate, dict)
    assert value is None or isinstance(value, int | float)
    return GateResult(Gate(**gate), value, passed=bool(row["passed"]), message=str(row["message"]))
