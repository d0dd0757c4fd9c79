"""Rows as domain values, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TypeAlias

import asyncpg
from google.protobuf import json_format

from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.scheduling.domain.job import Job, JobState, Progress
from headrace.scheduling.domain.node import Node, Occupant
from headrace.scheduling.domain.policy import JobView
from headrace.scheduling.domain.resources import Resources
from headrace.scheduling.domain.retraining import Reason, Retraining, RetrainingState
from headrace.scheduling.use_cases.documents import JobDocuments, JobRecord, Pipeline

Row: TypeAlias = asyncpg.Record
Json: TypeAlias = dict[str, object]


def spec_json(spec: pb.PipelineSpec) -> Json:
    """A specification as a jsonb column holds it, with the field names of its proto."""
    return json_format.MessageToDict(spec, preserving_proto_field_name=True)


def read_pipeline(row: Row) -> Pipeline:
    """A row of `pipelines`."""
    spec = json_format.ParseDict(row["spec"], pb.PipelineSpec(), ignore_unknown_fields=True)
    return Pipeline(row["name"], spec, row["generation"], row["create_time"], row["update_time"])


def read_resources(row: Row) -> Resources:
    """The columns gpu, cpu_millis and memory."""
    return Resources(row["gpu"], row["cpu_millis"], row["memory"])


def read_view(row: Row) -> JobView:
    """What decisions need of a row of `jobs`."""
    return JobView(
        id=str(row["id"]),
        version=row["version"],
        state=JobState(row["state"]),
        priority=row["priority"],
        resources=read_resources(row),
        attempt=row["attempt"],
        node=row["node"],
        create_time=row["create_time"],
        attempt_start_time=row["attempt_start_time"],
        deadline=row["deadline"],
    )


def read_job(row: Row) -> JobRecord:
    """A row of `jobs`."""
    job = Job(
        id=str(row["id"]),
        pipeline=row["pipeline"],
        dataset_version=row["dataset_version"],
        resources=read_resources(row),
        create_time=row["create_time"],
        queue_time=row["queue_time"],
        state=JobState(row["state"]),
        priority=row["priority"],
        max_retries=row["max_retries"],
        deadline=row["deadline"],
        attempt=row["attempt"],
        failures=row["failures"],
        node=row["node"],
        reason=row["reason"],
        message=row["message"],
        progress=_read_progress(row["progress"]),
        metrics={name: _number(value) for name, value in row["metrics"].items()},
        model_version=row["model_version"],
        start_time=row["start_time"],
        attempt_start_time=row["attempt_start_time"],
        end_time=row["end_time"],
        traceparent=row["traceparent"],
        placement_traceparent=row["placement_traceparent"],
        version=row["version"],
    )
    return JobRecord(
        job,
        JobDocuments(
            pb.TrainingSpec.FromString(row["training"]),
            ingestion_pb2.Schema.FromString(row["dataset_schema"]),
            ingestion_pb2.DatasetVersion.FromString(row["dataset"]),
        ),
    )


def progress_json(progress: Progress | None) -> Json | None:
    """Progress as a jsonb column holds it."""
    if progress is None:
        return None
    return {
        "epoch": progress.epoch,
        "epochs": progress.epochs,
        "loss": progress.loss,
        "remaining": progress.remaining.total_seconds(),
    }


def _read_progress(value: Mapping[str, float | None] | None) -> Progress | None:
    if value is None:
        return None
    return Progress(
        int(value["epoch"] or 0),
        int(value["epochs"] or 0),
        _number(value["loss"]),
        timedelta(seconds=value["remaining"] or 0),
    )


def _number(value: float | None) -> float:
    # JSON has no NaN and no infinity: a loss that diverged comes back as null.
    return math.nan if value is None else float(value)


def read_node(row: Row) -> Node:
    """A row of `nodes`."""
    return Node(
        name=row["name"],
        capacity=read_resources(row),
        lease_until=row["lease_until"],
        last_report_time=row["last_report_time"],
        version=row["version"],
        reported=tuple(
            Occupant(job, attempt, Resources(gpu, cpu_millis, memory))
            for job, attempt, gpu, cpu_millis, memory in row["reported"]
        ),
    )


def reported_json(reported: Iterable[Occupant]) -> list[list[str | int]]:
    """Active attempts as a jsonb column holds them."""
    return [
        [
            occupant.job,
            occupant.attempt,
            occupant.resources.gpu,
            occupant.resources.cpu_millis,
            occupant.resources.memory,
        ]
        for occupant in reported
    ]


def read_retraining(row: Row) -> Retraining:
    """A row of `retrainings`."""
    return Retraining(
        episode=str(row["episode"]),
        pipeline=row["pipeline"],
        deployment=row["deployment"],
        model_version=row["model_version"],
        dataset_version=row["dataset_version"],
        alert_time=row["alert_time"],
        update_time=row["update_time"],
        state=RetrainingState(row["state"]),
        reason=Reason(row["reason"]) if row["reason"] else None,
        message=row["message"],
        job=row["job"],
    )


def retraining_columns(retraining: Retraining) -> tuple[object, ...]:
    """As a new row of `retrainings` takes them."""
    return (
        retraining.episode,
        retraining.pipeline,
        retraining.deployment,
        retraining.model_version,
        retraining.dataset_version,
        retraining.state.value,
        retraining.reason.value if retraining.reason else None,
        retraining.message,
        retraining.job,
        retraining.alert_time,
        retraining.update_time,
    )
