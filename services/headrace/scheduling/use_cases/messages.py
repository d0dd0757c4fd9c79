"""Domain values as messages of the API, and back."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

from headrace.api.scheduling.v1 import drift_pb2
from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.errors import FieldViolation, InvalidArgument
from headrace.rpc.convert import from_duration, to_duration, to_timestamp
from headrace.scheduling.domain.job import JobState, Progress
from headrace.scheduling.domain.node import Node, NodeReport, TaskPhase, TaskReport
from headrace.scheduling.domain.resources import Resources, from_cores
from headrace.scheduling.domain.retraining import Retraining
from headrace.scheduling.domain.why import Why
from headrace.scheduling.use_cases.documents import JobRecord, Pipeline

MAX_NODE_NAME: Final = 253

_STATES: Final = {state: pb.JobState.Value(f"JOB_STATE_{state.value}") for state in JobState}
_PHASES: Final = {pb.TaskPhase.Value(f"TASK_PHASE_{phase.value}"): phase for phase in TaskPhase}


def to_resources(resources: Resources) -> pb.Resources:
    """Resources in the API's units."""
    return pb.Resources(cpu=resources.cpu, memory_bytes=resources.memory, gpu=resources.gpu)


def from_resources(message: pb.Resources) -> Resources:
    """Resources in whole units."""
    return from_cores(message.cpu, message.memory_bytes, message.gpu)


def to_progress(progress: Progress | None) -> pb.Progress | None:
    """Progress; None where there is none yet."""
    if progress is None:
        return None
    return pb.Progress(
        epoch=progress.epoch,
        epochs=progress.epochs,
        loss=progress.loss,
        remaining=to_duration(progress.remaining),
    )


def from_progress(message: pb.Progress) -> Progress:
    """Progress as a node reported it."""
    return Progress(message.epoch, message.epochs, message.loss, from_duration(message.remaining))


def to_pipeline(pipeline: Pipeline) -> pb.Pipeline:
    """A pipeline as clients see it."""
    return pb.Pipeline(
        name=pipeline.name,
        spec=pipeline.spec,
        generation=pipeline.generation,
        create_time=to_timestamp(pipeline.create_time),
        update_time=to_timestamp(pipeline.update_time),
    )


def to_retraining(retraining: Retraining) -> drift_pb2.Retraining:
    """What an alert led to, as clients see it."""
    return drift_pb2.Retraining(
        episode=retraining.episode,
        deployment=retraining.deployment,
        model_version=retraining.model_version,
        dataset_version=retraining.dataset_version,
        state=drift_pb2.RetrainingState.Value(f"RETRAINING_STATE_{retraining.state.value}"),
        reason=retraining.reason.value if retraining.reason else "",
        message=retraining.message,
        job=retraining.job,
        alert_time=to_timestamp(retraining.alert_time),
        update_time=to_timestamp(retraining.update_time),
    )


def to_job(record: JobRecord) -> pb.Job:
    """A job as clients and consumers see it."""
    job = record.job
    return pb.Job(
        id=job.id,
        pipeline=job.pipeline,
        dataset_version=job.dataset_version,
        state=_STATES[job.state],
        message=job.message,
        reason=job.reason,
        priority=job.priority,
        resources=to_resources(job.resources),
        attempt=job.attempt,
        failures=job.failures,
        node=job.node,
        progress=to_progress(job.progress),
        model_version=job.model_version,
        metrics=dict(job.metrics),
        create_time=to_timestamp(job.create_time),
        start_time=to_timestamp(job.start_time),
        end_time=to_timestamp(job.end_time),
        traceparent=job.traceparent,
        training=record.documents.training,
    )


def to_task(record: JobRecord) -> pb.Task:
    """A job as its node needs it."""
    job, documents = record.job, record.documents
    return pb.Task(
        job=job.id,
        attempt=job.attempt,
        pipeline=job.pipeline,
        training=documents.training,
        schema=documents.schema,
        dataset_version=documents.dataset_version,
        resources=to_resources(job.resources),
        deadline=to_duration(job.deadline),
        traceparent=job.placement_traceparent or job.traceparent,
    )


def to_desired_set(records: Iterable[JobRecord], lease: timedelta) -> pb.AttachNodeResponse:
    """All that a node should run."""
    return pb.AttachNodeResponse(tasks=map(to_task, records), lease_duration=to_duration(lease))


def to_node(node: Node, allocated: Resources, jobs: Sequence[str], now: datetime) -> pb.Node:
    """A node as clients see it."""
    return pb.Node(
        name=node.name,
        capacity=to_resources(node.capacity),
        allocated=to_resources(allocated),
        ready=node.ready(now),
        jobs=jobs,
        last_report_time=to_timestamp(node.last_report_time),
        version=node.version,
    )


def to_why(why: Why) -> pb.WhyPendingResponse:
    """An explanation as clients see it."""
    return pb.WhyPendingResponse(
        state=_STATES[why.state],
        reason=why.reason.value,
        message=why.message,
        nodes=[
            pb.WhyPendingResponse.NodeVerdict(
                node=verdict.node, verdict=verdict.verdict.value, detail=verdict.detail
            )
            for verdict in why.nodes
        ],
        ahead=why.ahead.first,
        ahead_count=why.ahead.count,
    )


def from_report(message: pb.AttachNodeRequest) -> NodeReport:
    """A node's report. Raises InvalidArgument INVALID_REPORT naming the field."""
    if not 0 < len(message.node) <= MAX_NODE_NAME:
        raise _invalid("node", f"a node's name has 1 to {MAX_NODE_NAME} characters")
    return NodeReport(
        node=message.node,
        version=message.version,
        capacity=from_resources(message.capacity),
        tasks=tuple(_from_task(f"tasks[{index}]", task) for index, task in enumerate(message.tasks)),
    )


def _from_task(path: str, task: pb.TaskStatus) -> TaskReport:
    phase = _PHASES.get(task.phase)
    if phase is None:
        raise _invalid(f"{path}.phase", "say where the task is")
    try:
        job = str(uuid.UUID(task.job))
    except ValueError as error:
        raise _invalid(f"{path}.job", f"{task.job!r} is not a job's id") from error
    return TaskReport(
        job=job,
        attempt=task.attempt,
        phase=phase,
        reason=task.reason,
        message=task.message,
        model_version=task.model_version,
        metrics=dict(task.metrics),
        progress=from_progress(task.progress) if task.HasField("progress") else None,
    )


def _invalid(field: str, description: str) -> InvalidArgument:
    return InvalidArgument(
        "INVALID_REPORT", f"{field}: {description}", fields=[FieldViolation(field, description)]
    )
