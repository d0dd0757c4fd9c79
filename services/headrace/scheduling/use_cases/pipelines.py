"""Applying and reading pipelines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from google.protobuf import json_format

from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.errors import FieldViolation, HeadraceError, NotFound
from headrace.recipes.catalogue import check_label, parse_parameters
from headrace.runtime.clock import Clock
from headrace.scheduling.domain.pipeline import check_pipeline
from headrace.scheduling.use_cases.documents import Pipeline, rules_of
from headrace.scheduling.use_cases.ports import Peers, Store


class Pipelines:
    """What clients do with pipelines."""

    def __init__(
        self, store: Store, peers: Peers, clock: Clock, stored: Callable[[Pipeline], Awaitable[None]]
    ) -> None:
        """`stored` is given each pipeline after it was stored, and may be given it again."""
        self._store = store
        self._peers = peers
        self._clock = clock
        self._stored = stored

    async def apply(self, name: str, spec: pb.PipelineSpec) -> Pipeline:
        """Create or change a pipeline in every service that it spans; the same one again changes nothing.

        The others go first, each an idempotent upsert: where one refuses or does not answer, nothing is
        stored here, and applying again is the repair; also where what follows the storing fails.
        """
        check_pipeline(rules_of(spec))
        _check_recipe(spec)
        await self._peers.apply_dataset(name, spec)
        await self._peers.apply_model(name, spec)
        if spec.HasField("deployment"):
            await self._peers.apply_deployment(name, spec)
        async with self._store.transaction() as transaction:
            pipeline = await transaction.put_pipeline(name, spec, self._clock())
        # Afterwards, for what is cut from now on finds the pipeline: no version falls in between.
        await self._stored(pipeline)
        return pipeline

    async def get(self, name: str) -> Pipeline:
        """The pipeline. Raises NotFound PIPELINE_NOT_FOUND."""
        pipeline = await self._store.pipeline(name)
        if pipeline is None:
            raise pipeline_not_found(name)
        return pipeline

    async def list(self, after: str, limit: int) -> list[Pipeline]:
        """Pipelines by name, after a name."""
        return await self._store.pipelines(after, limit)


def _check_recipe(spec: pb.PipelineSpec) -> None:
    """Raise InvalidArgument where there is no such recipe, or its parameters or label do not suit it."""
    label = spec.dataset.schema.label
    try:
        parameters = parse_parameters(
            spec.training.recipe, json_format.MessageToDict(spec.training.parameters)
        )
        check_label(parameters, label=label.name, classes=len(label.allowed_values))
    except HeadraceError as error:
        raise with_fields(error, lambda field: f"spec.{field}") from error


def with_fields(error: HeadraceError, path: Callable[[str], str]) -> HeadraceError:
    """The same error, its fields' paths under the request that the user made."""
    return type(error)(
        error.reason,
        error.message,
        fields=[FieldViolation(path(violation.field), violation.description) for violation in error.fields],
        metadata=error.metadata,
    )


def pipeline_not_found(name: str) -> NotFound:
    """The error for a pipeline that was never applied."""
    return NotFound("PIPELINE_NOT_FOUND", f'there is no pipeline "{name}"; apply it first')
