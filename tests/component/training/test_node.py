"""A training node against a real registry: what it makes, how it fails, and what survives a kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer
from tests.support.training import Training
from tests.support.waiting import PATIENCE_SECONDS, eventually

from headrace import errors
from headrace.api.registry.v1 import registry_pb2
from headrace.api.scheduling.v1 import scheduling_pb2 as api
from headrace.api.training.v1 import training_pb2
from headrace.events.training.v1 import events_pb2
from headrace.messaging import topics

SUCCEEDED, FAILED, STOPPED = api.TASK_PHASE_SUCCEEDED, api.TASK_PHASE_FAILED, api.TASK_PHASE_STOPPED
# Long enough to be killed on the way, with many checkpoints. Of small batches: with one large one it is over,
# on a busy machine, before the test has seen that it runs.
CHECKPOINT_EVERY = 40
LONG = {"epochs": 400, "batch_size": 32, "checkpoint_every": CHECKPOINT_EVERY}
ENDLESS = {**LONG, "epochs": 1_000_000}


async def told(bootstrap: str, run: str, state: int) -> list[training_pb2.Run]:
    """What the topic says of a run, up to this state."""
    consumer = AIOKafkaConsumer(
        topics.RUNS, bootstrap_servers=bootstrap, auto_offset_reset="earliest", group_id=None
    )
    found: list[training_pb2.Run] = []
    async with consumer, asyncio.timeout(PATIENCE_SECONDS):
        while not found or found[-1].state != state:
            record = await consumer.getone()
            changed = events_pb2.RunChanged.FromString(record.value).run
            if changed.id == run:
                found.append(changed)
    return found


async def run_of(training: Training, task: api.Task) -> training_pb2.Run:
    async with training.stub() as stub:
        return await stub.GetRun(training_pb2.GetRunRequest(id=f"{task.job}-{task.attempt}"))


async def until_checkpoint(training: Training, task: api.Task) -> None:
    """Wait until the running task has passed its first checkpoint."""

    async def ask() -> api.TaskStatus | None:
        return training.control.statuses.get((task.job, task.attempt))

    await eventually(ask, lambda status: status is not None and status.progress.epoch > CHECKPOINT_EVERY, 120)


@pytest.mark.broker
async def test_a_task_becomes_a_model_version_with_lineage(training: Training, kafka_bootstrap: str) -> None:
    await training.node.start()
    task = training.task(epochs=60)
    training.control.want(task)
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert status.phase == SUCCEEDED, status.message
    assert status.message == "version 1 is promoted"
    assert status.metrics["test/accuracy"] > 0.9
    [version] = await training.versions()
    assert version.state == registry_pb2.MODEL_VERSION_STATE_PROMOTED
    assert (version.lineage.job, version.lineage.run) == (task.job, f"{task.job}-1")
    assert version.lineage.dataset_version == task.dataset_version
    assert [artifact.path for artifact in version.artifacts] == [
        "model.onnx",
        "preprocess.json",
        "report.json",
    ]
    assert [tensor.name for tensor in version.signature.outputs] == ["probabilities", "label"]
    runs = await told(kafka_bootstrap, f"{task.job}-1", training_pb2.RUN_STATE_SUCCEEDED)
    assert runs[-1].model_version == 1
    assert runs[-1].metrics["test/accuracy"] == status.metrics["test/accuracy"]
    assert {run.state for run in runs} >= {
        training_pb2.RUN_STATE_STARTING,
        training_pb2.RUN_STATE_RUNNING,
        training_pb2.RUN_STATE_REGISTERING,
    }
    async with training.stub() as stub:
        stream = stub.StreamLogs(training_pb2.StreamLogsRequest(id=f"{task.job}-1"))
        lines = [line async for response in stream for line in response.lines]
    assert lines[0].startswith("rows: {'train': ")
    assert any(line.startswith("epoch 60/60") for line in lines)


async def test_a_gate_that_is_not_met_is_said(training: Training) -> None:
    await training.apply_model(api.Gate(metric="accuracy", split="test", min=1.5))
    await training.node.start()
    task = training.task()
    training.control.want(task)
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert status.phase == SUCCEEDED
    assert status.message.startswith("version 1 is refused: accuracy on test is 0.9")
    assert "at least 1.5 is asked for" in status.message


async def test_unknown_runs_are_a_typed_error(training: Training) -> None:
    await training.node.start()
    async with training.stub() as stub:
        with pytest.raises(errors.NotFound) as raised:
            await stub.GetRun(training_pb2.GetRunRequest(id="nothing-1"))
        recipes = (await stub.ListRecipes(training_pb2.ListRecipesRequest())).recipes
    assert raised.value.reason == "RUN_NOT_FOUND"
    assert "epochs" in {parameter.name for recipe in recipes for parameter in recipe.parameters}


async def test_a_run_without_its_table_fails_and_says_so(training: Training) -> None:
    await training.node.start()
    task = training.task()
    task.dataset_version.table_uri += "-missing"
    training.control.want(task)
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert (status.phase, status.reason) == (FAILED, "TABLE_NOT_FOUND")
    assert "cannot be read" in status.message
    assert await training.versions() == []


async def test_a_diverging_run_fails_and_says_what_may_help(training: Training) -> None:
    await training.node.start()
    task = training.task(optimizer="sgd", learning_rate=1e30, loss="mse")
    training.control.want(task)
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert (status.phase, status.reason) == (FAILED, "DIVERGED")
    assert "a smaller learning_rate may help" in status.message


async def test_a_run_past_its_deadline_is_ended(training: Training) -> None:
    await training.node.start()
    task = training.task(**ENDLESS)
    task.deadline.FromSeconds(8)
    training.control.want(task)
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert (status.phase, status.reason) == (FAILED, "DEADLINE_EXCEEDED")
    assert "8 s" in status.message


async def test_a_run_with_too_much_memory_is_ended(training: Training) -> None:
    await training.node.start()
    task = training.task(**ENDLESS)
    task.resources.memory_bytes = 32 << 20
    training.control.want(task)
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert (status.phase, status.reason) == (FAILED, "OUT_OF_MEMORY")
    assert "may use 32 MiB; raise resources.memory" in status.message


async def test_a_run_that_is_no_longer_wanted_stops_and_leaves_no_process(training: Training) -> None:
    await training.node.start()
    task = training.task(**ENDLESS)
    training.control.want(task)
    await until_checkpoint(training, task)
    training.control.want()
    stopped = await eventually(
        lambda: run_of(training, task), lambda run: run.state == training_pb2.RUN_STATE_STOPPED
    )
    assert stopped.message == "no longer desired"
    assert runs_of(training) == []


async def test_results_wait_for_a_registry_that_is_away(training: Training) -> None:
    await training.registry.stop()
    await training.node.start()
    task = training.task()
    training.control.want(task)
    await eventually(
        lambda: training_state(training, task), lambda state: state == training_pb2.RUN_STATE_REGISTERING, 60
    )
    await training.registry.start()
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert (status.phase, status.model_version) == (SUCCEEDED, 1)


async def test_results_wait_for_a_store_that_is_away(training: Training, tmp_path: Path) -> None:
    in_the_way = tmp_path / "store" / "models"
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.write_text("a file where the registry's folder should be")
    await training.node.start()
    task = training.task()
    training.control.want(task)

    async def log() -> str:
        return training.node.log.read_text()

    await eventually(log, lambda text: "is not registered yet" in text, 60)
    assert await training_state(training, task) == training_pb2.RUN_STATE_REGISTERING
    in_the_way.unlink()
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert (status.phase, status.model_version) == (SUCCEEDED, 1)


async def test_a_run_that_is_cancelled_while_it_is_registered_makes_no_version(training: Training) -> None:
    await training.registry.stop()
    await training.node.start()
    task = training.task()
    training.control.want(task)
    await eventually(
        lambda: training_state(training, task), lambda state: state == training_pb2.RUN_STATE_REGISTERING, 60
    )
    training.control.want()
    await training.control.until(task, STOPPED)
    await training.registry.start()
    assert await training.versions() == []


async def training_state(training: Training, task: api.Task) -> int:
    try:
        return (await run_of(training, task)).state
    except errors.NotFound:
        return training_pb2.RUN_STATE_UNSPECIFIED


def runs_of(training: Training) -> list[psutil.Process]:
    """The processes that train for this node."""
    assert training.node.pid is not None
    return [
        child
        for child in psutil.Process(training.node.pid).children(recursive=True)
        if "headrace.training.run" in " ".join(child.cmdline())
    ]


@pytest.mark.kill
async def test_a_killed_run_fails_and_the_next_attempt_resumes(training: Training) -> None:
    await training.node.start()
    task = training.task(**LONG)
    training.control.want(task)
    await until_checkpoint(training, task)
    for process in runs_of(training):
        process.kill()
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert (status.phase, status.reason) == (FAILED, "RUN_FAILED")
    assert "killed by SIGKILL; its last lines:" in status.message
    assert status.message.splitlines()[-1].startswith("epoch ")

    again = api.Task()
    again.CopyFrom(task)
    again.attempt = 2
    training.control.want(again)
    status = await training.control.until(again, SUCCEEDED, FAILED)
    assert status.phase == SUCCEEDED, status.message
    run = await run_of(training, again)
    assert run.resumed_epoch >= CHECKPOINT_EVERY
    assert run.epoch == LONG["epochs"]
    assert len(await training.versions()) == 1


@pytest.mark.kill
async def test_a_run_killed_right_after_a_checkpoint_resumes_from_it(
    training: Training, tmp_path: Path
) -> None:
    training.node.settings |= {
        "HEADRACE_FAULT": "training.after-checkpoint:3",
        "HEADRACE_FAULT_ONCE": str(tmp_path / "fired"),
    }
    await training.node.start()
    task = training.task(epochs=60, checkpoint_every=10)
    training.control.want(task)
    assert (await training.control.until(task, SUCCEEDED, FAILED)).phase == FAILED
    again = api.Task()
    again.CopyFrom(task)
    again.attempt = 2
    training.control.want(again)
    assert (await training.control.until(again, SUCCEEDED, FAILED)).phase == SUCCEEDED
    assert (await run_of(training, again)).resumed_epoch == 30

    async def checkpoints() -> list[Path]:
        return [path for path in (tmp_path / "store" / "checkpoints").rglob("*") if path.is_file()]

    await eventually(checkpoints, lambda left: left == [])


@pytest.mark.kill
async def test_a_killed_agent_takes_its_run_along_and_resumes_it(training: Training) -> None:
    await training.node.start()
    task = training.task(**LONG)
    training.control.want(task)
    await until_checkpoint(training, task)
    orphans = runs_of(training)
    assert training.node.pid is not None
    os.kill(training.node.pid, signal.SIGKILL)
    await training.node.killed()
    _, alive = await asyncio.to_thread(psutil.wait_procs, orphans, PATIENCE_SECONDS)
    assert alive == []

    await training.node.start()
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert status.phase == SUCCEEDED, status.message
    run = await run_of(training, task)
    assert run.resumed_epoch >= CHECKPOINT_EVERY
    assert len(await training.versions()) == 1


@pytest.mark.kill
@pytest.mark.parametrize("fault", ["training.after-run-start", "training.after-register"])
async def test_an_agent_killed_at_a_fault_point_makes_one_version(
    fault: str, training: Training, tmp_path: Path
) -> None:
    training.node.settings |= {"HEADRACE_FAULT": fault, "HEADRACE_FAULT_ONCE": str(tmp_path / "fired")}
    await training.node.start()
    task = training.task()
    training.control.want(task)
    await training.node.killed()
    await training.node.start()
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert (status.phase, status.model_version) == (SUCCEEDED, 1), status.message
    assert len(await training.versions()) == 1


@pytest.mark.kill
async def test_a_stopped_agent_saves_its_run_and_goes_on(training: Training) -> None:
    await training.node.start()
    task = training.task(**LONG)
    training.control.want(task)
    await until_checkpoint(training, task)
    await training.node.stop()
    await training.node.start()
    status = await training.control.until(task, SUCCEEDED, FAILED)
    assert status.phase == SUCCEEDED, status.message
    assert (await run_of(training, task)).resumed_epoch > CHECKPOINT_EVERY
