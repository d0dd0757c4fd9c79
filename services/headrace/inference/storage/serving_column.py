"""How a deployment is served, as one column."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel, Field

from headrace.inference.domain.serving import DEFAULTS, LOG_ALL, LogRules, Serving


class _Column(BaseModel):
    """What is absent has its default, so that rows from before a setting existed are read."""

    max_batch_size: int = DEFAULTS.max_batch_size
    max_queue_microseconds: int = DEFAULTS.queue_microseconds
    preferred: tuple[int, ...] = DEFAULTS.preferred
    instances: int = DEFAULTS.instances
    log: LogRules = Field(default=LOG_ALL)


def serving_column(serving: Serving) -> dict[str, object]:
    """What is stored."""
    return _Column(
        max_batch_size=serving.max_batch_size,
        max_queue_microseconds=serving.queue_microseconds,
        preferred=serving.preferred,
        instances=serving.instances,
        log=serving.log,
    ).model_dump()


def serving_from(column: object) -> Serving:
    """What was stored."""
    stored = _Column.model_validate(column)
    return Serving(
        stored.max_batch_size,
        timedelta(microseconds=stored.max_queue_microseconds),
        stored.preferred,
        stored.instances,
        stored.log,
    )
