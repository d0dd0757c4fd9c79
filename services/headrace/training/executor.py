"""Runs as subprocesses, with a pipe for what they say and limits on what they take."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
from google.protobuf import json_format
from pydantic import JsonValue

from headrace.api.ingestion.v1 import ingestion_pb2
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.objects import ObjectStore
from headrace.rpc.tensors import from_tensor_type
from headrace.runtime.children import bound_to_parent
from headrace.splits import By, Shares
from headrace.training.domain.runs import Run, exit_text
from headrace.training.run import messages
from headrace.training.run.specification import (
    Column,
    Dataset,
    Encoding,
    Label,
    MissingRule,
    Normalisation,
    Preparation,
    RunSpec,
)
from headrace.training.use_cases.ports import Ending, Listener

logger = logging.getLogger(__name__)

LOG_FILE = "log.txt"
STOP_SECONDS = 10.0
WATCH_SECONDS = 1.0
# Environment of the run beside the agent's own; the names are those of `headrace.training.run.__main__`.
PIPE_VARIABLE = "HEADRACE_RUN_PIPE"
TRACE_VARIABLE = "TRACEPARENT"
SPLITS_BY: Mapping[int, By] = {ingestion_pb2.SPLIT_BY_TIME: "time"}
NORMALISATIONS: Mapping[int, Normalisation] = {
    scheduling_pb2.NORMALISATION_STANDARD: "standard",
    scheduling_pb2.NORMALISATION_MIN_MAX: "min_max",
    scheduling_pb2.NORMALISATION_ROBUST: "robust",
}
MISSING_RULES: Mapping[int, MissingRule] = {
    scheduling_pb2.MISSING_RULE_MEAN: "mean",
    scheduling_pb2.MISSING_RULE_MEDIAN: "median",
    scheduling_pb2.MISSING_RULE_CONSTANT: "constant",
}
ENCODINGS: Mapping[int, Encoding] = {
    scheduling_pb2.ENCODING_ONE_HOT: "one_hot",
    scheduling_pb2.ENCODING_ORDINAL: "ordinal",
}


class LocalExecutor:
    """Runs on this machine, each in a folder of its own below `root`."""

    def __init__(self, root: Path, store_uri: str, in_memory_bytes: int) -> None:
        """`in_memory_bytes`: a dataset version whose features take more is streamed."""
        self._root = root
        self._store_uri = store_uri
        self._in_memory_bytes = in_memory_bytes

    def folder(self, run_id: str) -> Path:
        """Where a run's files lie."""
        return self._root / run_id

    def log(self, run_id: str) -> Path:
        """What a run printed."""
        return self.folder(run_id) / LOG_FILE

    async def discard_checkpoints(self, job: str) -> None:
        """Remove what no attempt of the job will resume from."""
        store = ObjectStore.from_uri(self._store_uri)
        for path in await store.list(f"checkpoints/{job}"):
            await store.delete(path)

    async def execute(
        self, task: scheduling_pb2.Task, run: Run, listen: Listener, stop: Awaitable[object]
    ) -> Ending:
        """Run to the end, telling what the run says; `stop` done, or being cancelled, ends it."""
        folder = self.folder(run.id)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        specification(task, run, self._store_uri, self._in_memory_bytes).write(folder)
        reading, writing = os.pipe()
        try:
            with self.log(run.id).open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *bound_to_parent([sys.executable, "-m", "headrace.training.run", str(folder)]),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(writing,),
                    env={**os.environ, PIPE_VARIABLE: str(writing), TRACE_VARIABLE: run.traceparent},
                    start_new_session=True,
                )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return await self._follow(process, reading, task, run, listen, stop)

    async def _follow(
        self,
        process: asyncio.subprocess.Process,
        reading: int,
        task: scheduling_pb2.Task,
        run: Run,
        listen: Listener,
        stop: Awaitable[object],
    ) -> Ending:
        failures: list[messages.Failed] = []
        hearing = asyncio.create_task(_hear(reading, listen, failures))
        watching = asyncio.create_task(_watch(process.pid, task.resources.memory_bytes))
        stopping = asyncio.ensure_future(stop)
        waiting = asyncio.create_task(process.wait())
        deadline = task.deadline.ToTimedelta().total_seconds() or None
        try:
            done, _ = await asyncio.wait(
                [waiting, watching, stopping], timeout=deadline, return_when=asyncio.FIRST_COMPLETED
            )
            if waiting not in done:
                await _end(process)
            code = await waiting
            await hearing
        except BaseException:
            await asyncio.shield(_end(process))
            raise
        finally:
            for helper in (hearing, watching, stopping):
                helper.cancel()
            await asyncio.gather(hearing, watching, stopping, return_exceptions=True)
            _kill_group(process.pid)
        if not done:
            return Ending(1, "DEADLINE_EXCEEDED", f"the run took longer than its deadline of {deadline:g} s")
        if watching in done and waiting not in done:
            return Ending(1, "OUT_OF_MEMORY", watching.result())
        if code == 0:
            return Ending(0)
        if failures:
            return Ending(code, failures[-1].reason, failures[-1].message)
        return Ending(code, "RUN_FAILED", exit_text(code, _lines(self.log(run.id))))


async def _hear(reading: int, listen: Listener, failures: list[messages.Failed]) -> None:
    """Pass on what the run says until it closes the pipe."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(reading, "rb", 0)
    )
    try:
        async for line in reader:
            try:
                message = messages.parse(line)
            except ValueError:
                logger.warning("a run said what nobody understands: %r", line[:200])
                continue
            if isinstance(message, messages.Failed):
                failures.append(message)
            await listen(message)
    finally:
        transport.close()


async def _watch(pid: int, limit: int) -> str:
    """Return, saying why, when the run has more memory of its own than it may; never without a limit."""
    while True:
        await asyncio.sleep(WATCH_SECONDS)
        if not limit:
            continue
        try:
            # Unique, not resident: PyTorch maps gigabytes of libraries that it shares with the page cache.
            used = await asyncio.to_thread(lambda: psutil.Process(pid).memory_full_info().uss)
        except psutil.Error:
            continue
        if used > limit:
            return f"the run uses {used >> 20} MiB and may use {limit >> 20} MiB; raise resources.memory"


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        _kill_group(process.pid)
        await process.wait()


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines() if log.exists() else []


def specification(task: scheduling_pb2.Task, run: Run, store_uri: str, in_memory_bytes: int) -> RunSpec:
    """What the run is told, from what the node was told."""
    version, schema, training = task.dataset_version, task.schema, task.training
    parameters: dict[str, JsonValue] = json_format.MessageToDict(training.parameters)
    return RunSpec(
        run=run.id,
        job=run.job,
        attempt=run.attempt,
        pipeline=run.pipeline,
        node=run.node,
        recipe=training.recipe,
        parameters={name: _whole(value) for name, value in parameters.items()},
        dataset=Dataset(
            name=version.dataset,
            version=version.version,
            table_uri=version.table_uri,
            table_version=version.table_version,
            content_hash=version.content_hash,
            key=schema.key,
            features=tuple(map(_column, schema.features)),
            label=Label(
                name=schema.label.name,
                type=_type(schema.label),
                classes=tuple(schema.label.allowed_values),
            ),
        ),
        shares=Shares(
            train=training.split.train,
            validation=training.split.validation,
            test=training.split.test,
            by=SPLITS_BY.get(training.split.by, "key"),
        ),
        preparations=_preparations(schema, training),
        normalise_label=training.normalise_label == scheduling_pb2.NORMALISATION_STANDARD,
        seed=training.seed,
        store_uri=store_uri,
        in_memory_bytes=in_memory_bytes,
        cpu=task.resources.cpu or 1.0,
        gpu=task.resources.gpu,
    )


def _preparations(
    schema: ingestion_pb2.Schema, training: scheduling_pb2.TrainingSpec
) -> tuple[Preparation, ...]:
    wishes = {wish.feature: wish for wish in training.preparations}
    plain = scheduling_pb2.Preparation(normalise=training.normalise)
    return tuple(_preparation(field.name, wishes.get(field.name, plain)) for field in schema.features)


def _column(field: ingestion_pb2.Field) -> Column:
    return Column(
        name=field.name,
        type=_type(field),
        tensor=from_tensor_type(field.tensor) if field.HasField("tensor") else None,
    )


def _preparation(feature: str, wish: scheduling_pb2.Preparation) -> Preparation:
    return Preparation(
        feature=feature,
        missing=MISSING_RULES.get(wish.missing, "refuse"),
        constant=wish.constant,
        indicator=wish.indicator,
        clip_min=wish.clip_min if wish.HasField("clip_min") else None,
        clip_max=wish.clip_max if wish.HasField("clip_max") else None,
        log=wish.log,
        normalise=NORMALISATIONS.get(wish.normalise, "none"),
        encode=ENCODINGS.get(wish.encode, "number"),
        resize=(wish.resize.height, wish.resize.width) if wish.HasField("resize") else None,
        per_channel=wish.per_channel,
        text_constant=wish.text_constant if wish.HasField("text_constant") else None,
    )


def _type(field: ingestion_pb2.Field) -> str:
    return ingestion_pb2.FieldType.Name(field.type).removeprefix("FIELD_TYPE_").lower()


def _whole(value: JsonValue) -> JsonValue:
    """A Struct's numbers are all floating; 64.0 was meant as 64."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return value
