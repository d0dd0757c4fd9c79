"""Between the training service's domain and its messages."""

from __future__ import annotations

from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.api.training.v1 import training_pb2 as api
from headrace.rpc.convert import to_duration, to_timestamp
from headrace.training.domain.runs import Run, RunState

_PHASES = {
    RunState.STARTING: scheduling_pb2.TASK_PHASE_STARTING,
    RunState.RUNNING: scheduling_pb2.TASK_PHASE_RUNNING,
    RunState.REGISTERING: scheduling_pb2.TASK_PHASE_RUNNING,
    RunState.SUCCEEDED: scheduling_pb2.TASK_PHASE_SUCCEEDED,
    RunState.FAILED: scheduling_pb2.TASK_PHASE_FAILED,
    RunState.STOPPED: scheduling_pb2.TASK_PHASE_STOPPED,
}


def run_message(run: Run) -> api.Run:
    """A run."""
    return api.Run(
        id=run.id,
        job=run.job,
        attempt=run.attempt,
        pipeline=run.pipeline,
        state=api.RunState.Value(f"RUN_STATE_{run.state}"),
        reason=run.reason,
        message=run.message,
        epoch=run.epoch,
        epochs=run.epochs,
        loss=run.loss,
        remaining=to_duration(run.remaining),
        resumed_epoch=run.resumed_epoch,
        metrics=dict(run.metrics),
        model_version=run.model_version,
        node=run.node,
        start_time=to_timestamp(run.start_time),
        end_time=to_timestamp(run.end_time),
    )


def task_status(run: Run) -> scheduling_pb2.TaskStatus:
    """A run as its node reports it."""
    return scheduling_pb2.TaskStatus(
        job=run.job,
        attempt=run.attempt,
        phase=_PHASES[run.state],
        reason=run.reason,
        message=run.message,
        model_version=run.model_version,
        metrics=dict(run.metrics),
        progress=scheduling_pb2.Progress(
            epoch=run.epoch, epochs=run.epochs, loss=run.loss, remaining=to_duration(run.remaining)
        ),
    )
