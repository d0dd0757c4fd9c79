"""From an open version to a verdict."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from headrace.errors import DataLoss, NotFound
from headrace.model_formats import ModelFormat
from headrace.registry.domain.audit import Action, AuditEntry
from headrace.registry.domain.gates import Gate, GateResult, check_gates, describe, judge
from headrace.registry.domain.models import (
    CHAMPION,
    Artifact,
    Model,
    Version,
    VersionState,
    check_alias,
    check_nameable,
    closed,
    moves_champion,
    number_at,
    stored_artifact,
)
from headrace.registry.use_cases import metrics
from headrace.registry.use_cases.ports import Blobs, UnitOfWork, Work
from headrace.runtime.clock import Clock
from headrace.runtime.faults import fault_point
from headrace.telemetry import names, tracing


class Registry:
    """Everything that changes or reads models and versions."""

    def __init__(self, work: UnitOfWork, blobs: Blobs, clock: Clock) -> None:
        self._work = work
        self._blobs = blobs
        self._clock = clock

    async def apply_model(self, name: str, gates: Sequence[Gate]) -> Model:
        """Create a model or change its gates; the same gates again change nothing. Raises InvalidArgument."""
        check_gates(gates)
        now = self._clock()
        async with self._work() as work:
            created = await work.models.insert_model(name, gates, now)
            model = await work.models.model(name, lock=True)
            if not created:
                if model.gates == tuple(gates):
                    return model
                await work.models.change_gates(name, gates, now)
                model = replace(model, gates=tuple(gates), update_time=now)
            await work.events.model_changed(model)
            action = Action.MODEL_CREATED if created else Action.GATES_CHANGED
            await work.models.audit(_entry(name, action, 0, describe(gates), now))
            return model

    async def model(self, name: str) -> Model:
        """One model. Raises NotFound."""
        async with self._work() as work:
            return await work.models.model(name)

    async def models(self, after: str, limit: int) -> list[Model]:
        """Models by name."""
        async with self._work() as work:
            return await work.models.models(after, limit)

    async def create(
        self,
        model: str,
        request_id: str,
        *,
        measured: Mapping[str, float],
        lineage: bytes,
        signature: bytes,
        form: ModelFormat = ModelFormat.ONNX,
    ) -> Version:
        """Open a version; the same request is answered the same one. Raises NotFound.

        One that is still uploaded to takes what the newest request says: its artifacts are the newest too.
        """
        with tracing.span(names.SPAN_REGISTER_MODEL_VERSION, attributes={names.MODEL: model}) as span:
            async with self._work() as work:
                await work.models.model(model, lock=True)
                number = await work.models.version_of_request(model, request_id)
                if number is None:
                    now = self._clock()
                    number = await work.models.insert_version(
                        model,
                        request_id,
                        metrics=measured,
                        lineage=lineage,
                        signature=signature,
                        form=form,
                        traceparent=tracing.current_traceparent(),
                        now=now,
                    )
                    await work.models.audit(
                        _entry(model, Action.VERSION_OPENED, number, f"by request {request_id}", now)
                    )
                span.set_attribute(names.MODEL_VERSION, number)
                version = await work.models.version(model, number)
                asked = replace(version, metrics=measured, lineage=lineage, signature=signature, format=form)
                if version.state is not VersionState.UPLOADING or version == asked:
                    return version
                await work.models.describe_version(asked)
                return asked

    async def upload(
        self, model: str, number: int, declared: Artifact, chunks: AsyncIterator[bytes]
    ) -> Artifact:
        """Store an artifact as declared: its size and SHA-256 are checked on the way in.

        The object is named by its checksum, so that one that is replaced, or whose upload broke off, is
        never seen under a name that something refers to. Raises DataLoss/CHECKSUM_MISMATCH.
        """
        path = _object_path(model, number, declared)
        async with self._work() as work:
            stored = stored_artifact(await work.models.version(model, number), declared)
        if stored is not None:
            metrics.UPLOADS.labels("unchanged").inc()
            return stored
        try:
            await self._blobs.put(path, _checked(declared, chunks))
            async with self._work() as work:
                await work.models.model(model, lock=True)
                stored = stored_artifact(await work.models.version(model, number), declared)
                if stored is None:
                    stored = replace(declared, uri=self._blobs.uri(path))
                    await work.models.put_artifact(model, number, stored)
        except BaseException:
            metrics.UPLOADS.labels("failed").inc()
            raise
        metrics.UPLOADS.labels("stored").inc()
        metrics.ARTIFACT_BYTES.inc(stored.size)
        return stored

    async def commit(self, model: str, number: int, required: Sequence[str]) -> Version:
        """Close a version: judge it, and tell. Repeating it changes nothing."""
        with tracing.span(
            names.SPAN_EVALUATE_GATES, attributes={names.MODEL: model, names.MODEL_VERSION: number}
        ):
            async with self._work() as work:
                owner = await work.models.model(model, lock=True)
                version = await work.models.version(model, number)
                if version.state is not VersionState.UPLOADING:
                    return version
                now = self._clock()
                version = closed(version, owner, tuple(required), now)
                await work.models.close_version(version)
                await work.events.registered(version)
                await work.events.judged(version)
                await work.models.audit(_verdict(version, now))
                if moves_champion(version, owner):
                    await self._move_alias(work, owner, CHAMPION, number)
            fault_point("registry.after-commit")
            metrics.VERSIONS.labels(version.state.value).inc()
            return version

    async def evaluate(self, model: str, number: int) -> tuple[GateResult, ...]:
        """Judge a version against its model's gates as they are now, changing nothing."""
        async with self._work() as work:
            owner = await work.models.model(model)
            version = await work.models.version(model, number)
        return judge(owner.gates, version.metrics)

    async def version(self, model: str, number: int) -> Version:
        """One version. Raises NotFound."""
        async with self._work() as work:
            await work.models.model(model)
            return await work.models.version(model, number)

    async def version_at(self, model: str, alias: str) -> Version:
        """The version that an alias points at. Raises NotFound."""
        async with self._work() as work:
            owner = await work.models.model(model)
            return await work.models.version(model, number_at(owner, alias))

    async def versions(self, model: str, before: int, limit: int) -> list[Version]:
        """Versions below a number, newest first. Raises NotFound for the model."""
        async with self._work() as work:
            await work.models.model(model)
            return await work.models.versions(model, before, limit)

    async def download(self, model: str, number: int, path: str) -> AsyncIterator[bytes]:
        """An artifact's bytes. Raises NotFound."""
        version = await self.version(model, number)
        for artifact in version.artifacts:
            if artifact.path == path:
                async for chunk in self._blobs.stream(_object_path(model, number, artifact)):
                    yield chunk
                return
        raise _no_artifact(version, path)

    async def set_alias(self, model: str, alias: str, number: int) -> Model:
        """Point an alias at a version, or with 0 remove it."""
        check_alias(alias)
        async with self._work() as work:
            owner = await work.models.model(model, lock=True)
            if number:
                check_nameable(await work.models.version(model, number))
            if number != owner.aliases.get(alias, 0):
                await self._move_alias(work, owner, alias, number)
            return await work.models.model(model)

    async def _move_alias(self, work: Work, model: Model, alias: str, number: int) -> None:
        previous = model.aliases.get(alias, 0)
        await work.models.set_alias(model.name, alias, number)
        await work.events.alias_changed(model.name, alias, number, previous)
        details = f"{alias} from {previous or 'nowhere'} to {number or 'nowhere'}"
        await work.models.audit(_entry(model.name, Action.ALIAS_MOVED, number, details, self._clock()))


def _object_path(model: str, number: int, artifact: Artifact) -> str:
    return f"models/{model}/{number}/{artifact.sha256[:16]}/{artifact.path}"


async def _checked(declared: Artifact, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Pass chunks on, and raise at their end, before the store has the whole, if they are others."""
    digest = hashlib.sha256()
    size = 0
    async for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if size > declared.size:
            raise DataLoss(
                "CHECKSUM_MISMATCH",
                f"more than the {declared.size} bytes that were declared of {declared.path} arrived; "
                "send it again",
            )
        yield chunk
    if size != declared.size or digest.hexdigest() != declared.sha256:
        raise DataLoss(
            "CHECKSUM_MISMATCH",
            f"{declared.path} arrived with {size} bytes and SHA-256 {digest.hexdigest()}, "
            f"declared were {declared.size} and {declared.sha256}; send it again",
        )


def _entry(model: str, action: Action, version: int, details: str, now: datetime) -> AuditEntry:
    return AuditEntry(model, action, version, details, tracing.current_traceparent(), now)


def _verdict(version: Version, now: datetime) -> AuditEntry:
    promoted = version.state is VersionState.PROMOTED
    told = [result.message for result in version.gate_results if result.passed == promoted]
    action = Action.VERSION_PROMOTED if promoted else Action.VERSION_REFUSED
    return _entry(version.model, action, version.number, "; ".join(told) or "no gates", now)


def _no_artifact(version: Version, path: str) -> NotFound:
    known = ", ".join(artifact.path for artifact in version.artifacts) or "none"
    return NotFound(
        "ARTIFACT_NOT_FOUND",
        f"version {version.number} of {version.model} has no artifact {path!r}; it has: {known}",
    )
