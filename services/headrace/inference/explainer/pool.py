"""Processes that explain, and the queue before them (`use_cases.explain_ports.Explainer`)."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import numpy as np

from headrace.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    HeadraceError,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from headrace.inference.domain.attribution import Attributions
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.explanations import ExplainedModel, ExplainedRow, Method, Question, Table
from headrace.inference.explainer import frames
from headrace.inference.explainer.frames import LENGTH, READY, Reply, Rows, Runtime, Task
from headrace.inference.explainer.metrics import ENDED
from headrace.inference.settings import Settings
from headrace.model_formats import ModelFormat
from headrace.objects import ObjectStore
from headrace.rpc import deadline
from headrace.runtime.children import bound_to_parent

logger = logging.getLogger(__name__)

# Of what is left of a call, for the process; and for the answer, which must be on its way before the end.
_COMPUTING_SHARE: Final = 0.8
_ANSWERING_SHARE: Final = 0.95
# A process takes a second to start, and a hundred megabytes while it waits; of PyTorch some seconds, and some
# hundreds.
_IDLE_SECONDS: Final = 60.0
# Beyond that it hangs.
_STARTING_SECONDS: Final = 120.0
# It is told nothing of where the platform's parts are, or by which password.
_ENVIRONMENT: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "TZ")
_FOR_UV: Final = ("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR")
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# A GPU is for what serves and trains.
_NO_GPU: Final = {"CUDA_VISIBLE_DEVICES": ""}
_RUNTIMES: Final[Mapping[ModelFormat, Runtime]] = {
    ModelFormat.ONNX: "onnx",
    ModelFormat.TORCHSCRIPT: "torch",
    ModelFormat.TORCH_EXPORT: "torch",
    ModelFormat.PYTHON: "python",
}


class ExplainerPool:
    """So many processes, started when they are needed, and a queue of bounded length before them."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        processes: int,
        waiting: int,
        memory_bytes: int,
        seconds: float,
        places: Mapping[Runtime, Sequence[str]],
    ) -> None:
        self._store = store
        self._turns = asyncio.Semaphore(processes)
        self._processes = processes
        self._at_work = 0
        self._most = processes + waiting
        self._inside = 0
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._places = places
        self._idle: list[_Process] = []

    async def explain(
        self, version: ServedVersion, model: ExplainedModel, question: Question
    ) -> Sequence[ExplainedRow]:
        """Explain rows, in turn. What it raises is written in the port."""
        if self._inside >= self._most:
            raise ResourceExhausted(
                "EXPLAINER_BUSY", f"{self._inside} explanations are being computed or wait; try again later"
            )
        left = deadline.remaining()
        seconds = self._seconds if left is None else min(self._seconds, left * _ANSWERING_SHARE)
        self._inside += 1
        try:
            async with asyncio.timeout(seconds) as until, self._turn():
                reply = await self._reply(version, model, question, until.when() or 0.0)
        except TimeoutError:
            raise _too_slow() from None
        finally:
            self._inside -= 1
        if reply.failure is not None:
            raise _failure(reply, version)
        return [_explained_row(row) for row in reply.rows]

    async def close_idle(self) -> None:
        """Let processes go that have had nothing to do for a while; without end."""
        while True:
            await asyncio.sleep(_IDLE_SECONDS / 2)
            long_ago = asyncio.get_running_loop().time() - _IDLE_SECONDS
            for process in [process for process in self._idle if process.idle_since < long_ago]:
                self._idle.remove(process)
                await process.end()

    async def close(self) -> None:
        """End the processes that wait for work."""
        while self._idle:
            await self._idle.pop().end()

    async def _reply(
        self, version: ServedVersion, model: ExplainedModel, question: Question, until: float
    ) -> Reply:
        """Ask a process; whatever happens to one that works, it is not asked again."""
        key, runtime = _key(version, model), _RUNTIMES[version.format]
        if runtime not in self._places:
            raise FailedPrecondition(
                "PACKAGES_NOT_EXPLAINED",
                f"{version.model} version {version.version} is a Python package, and "
                "HEADRACE_INFERENCE_PACKAGES_PYTHON does not tell the inference service what builds its "
                "environment",
            )
        process = await self._process(runtime, key)
        # One that starts goes on when its caller leaves: a busy machine takes longer than some callers wait.
        at_rest = True
        try:
            await process.started()
            async with self._file(version, loaded=process.key == key) as file:
                at_rest = False
                reply = await process.ask(_task(version, model, question, key, file, until))
                at_rest = reply.failure != "EXPLAINER_OUT_OF_MEMORY"
            process.key = "" if reply.failure in ("MODEL_FAILED", "PACKAGE_NOT_READY") else key
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            at_rest = False
            status = await process.end()
            logger.warning(
                "the process that explained %s version %d ended with %d",
                version.model,
                version.version,
                status,
            )
            raise Internal(
                "EXPLAINER_DIED",
                "the process that explains has ended; the next explanation has a new one. Where that ends, "
                "too, ask for fewer rows, or raise HEADRACE_INFERENCE_EXPLAIN_MEMORY_BYTES",
            ) from error
        finally:
            if at_rest and not process.hangs:
                process.idle_since = asyncio.get_running_loop().time()
                self._idle.append(process)
            else:
                ENDED.inc()
                await process.end()
        return reply

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        async with self._turns:
            self._at_work += 1
            try:
                yield
            finally:
                self._at_work -= 1

    async def _process(self, runtime: Runtime, key: str) -> _Process:
        """The one that has the model, or else any of its runtime that waits; else a new one."""
        self._idle = [process for process in self._idle if process.lives]
        # The last one is taken first, and the first one goes first where another runtime needs its place.
        self._idle.sort(key=lambda process: (process.runtime == runtime, process.key == key))
        if self._idle and self._idle[-1].runtime == runtime:
            return self._idle.pop()
        while self._idle and len(self._idle) + self._at_work > self._processes:
            await self._idle.pop(0).end()
        return await _Process.start(runtime, self._memory_bytes, self._places[runtime])

    @asynccontextmanager
    async def _file(self, version: ServedVersion, *, loaded: bool) -> AsyncIterator[str]:
        """A version's file, which is the registered one, while it is loaded; empty where it is already."""
        if loaded:
            yield ""
            return
        digest = hashlib.sha256()
        suffix = f"-{version.format.file}"
        with tempfile.NamedTemporaryFile(prefix="headrace-explained-", suffix=suffix) as file:
            try:
                async for chunk in self._store.stream(self._store.path(version.uri)):
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
            except (NotFound, InvalidArgument) as error:
                raise FailedPrecondition("MODEL_FILE_MISSING", str(error)) from error
            file.flush()
            if digest.hexdigest() != version.sha256:
                raise DataLoss(
                    "MODEL_FILE_MISMATCH",
                    f"{version.uri} has SHA-256 {digest.hexdigest()}, registered was {version.sha256}",
                )
            yield file.name


@asynccontextmanager
async def explainer_pool(store: ObjectStore, settings: Settings) -> AsyncIterator[ExplainerPool]:
    """A pool whose processes end with the block."""
    pool = ExplainerPool(
        store,
        processes=settings.explain_processes,
        waiting=settings.explain_waiting,
        memory_bytes=settings.explain_memory_bytes,
        seconds=settings.explain_seconds,
        places=_places(settings),
    )
    try:
        yield pool
    finally:
        await pool.close()


def _places(settings: Settings) -> dict[Runtime, Sequence[str]]:
    """Where each runtime finds what it needs; one that finds nothing is left out."""
    places: dict[Runtime, Sequence[str]] = {"onnx": (), "torch": (settings.torch_path,)}
    if settings.packages_python:
        places["python"] = (settings.packages_python, str(settings.packages_path))
    return places


class _Process:
    """One process, which does one thing at a time. `key`: of the model that it has."""

    def __init__(self, process: asyncio.subprocess.Process, runtime: Runtime) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._tasks = process.stdin
        self._replies = process.stdout
        self.runtime: Final = runtime
        self.key = ""
        self.idle_since = 0.0
        self._starts_until: float | None = asyncio.get_running_loop().time() + _STARTING_SECONDS

    @classmethod
    async def start(cls, runtime: Runtime, memory_bytes: int, places: Sequence[str]) -> _Process:
        worker = ["-m", "headrace.inference.explainer.worker", str(memory_bytes), runtime, *places]
        told = _is_for_uv if runtime == "python" else _is_for_all
        process = await asyncio.create_subprocess_exec(
            *bound_to_parent([sys.executable, *worker]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if told(name)} | _ONE_THREAD | _NO_GPU,
            # A terminal's interrupt is for the service, which ends it.
            start_new_session=True,
        )
        return cls(process, runtime)

    @property
    def lives(self) -> bool:
        return self._process.returncode is None

    @property
    def hangs(self) -> bool:
        """Whether it should have started long ago."""
        return self._starts_until is not None and asyncio.get_running_loop().time() > self._starts_until

    async def started(self) -> None:
        """Wait until it takes tasks; whoever leaves meanwhile changes nothing. Raises as `ask` does."""
        if self._starts_until is not None:
            await self._replies.readexactly(len(READY))
            self._starts_until = None

    async def ask(self, task: Task) -> Reply:
        """Raises IncompleteReadError or ConnectionError where it ends before it has answered."""
        self._tasks.write(task.packed())
        await self._tasks.drain()
        (length,) = LENGTH.unpack(await self._replies.readexactly(LENGTH.size))
        return Reply.model_validate_json(await self._replies.readexactly(length))

    async def end(self) -> int:
        """Kill it; its exit status. It has nothing that could be lost."""
        if self.lives:
            self._process.kill()
        return await self._process.wait()


def _is_for_all(name: str) -> bool:
    return name in _ENVIRONMENT


def _is_for_uv(name: str) -> bool:
    """What uv goes by where it builds a package's environment; the package is not told."""
    return name in (*_ENVIRONMENT, *_FOR_UV) or name.startswith("UV_") or name.lower().endswith("_proxy")


def _key(version: ServedVersion, model: ExplainedModel) -> str:
    """The same for the same file, read in the same way."""
    return json.dumps(
        [version.sha256, version.format, model.numbers, model.texts, model.outputs, model.output]
    )


def _task(
    version: ServedVersion, model: ExplainedModel, question: Question, key: str, file: str, until: float
) -> Task:
    now = asyncio.get_running_loop().time()
    return Task(
        file=file,
        key=key,
        format=version.format,
        numbers=model.numbers,
        texts=model.texts,
        outputs=model.outputs,
        output=model.output,
        place=question.place,
        rows=_rows(question.rows),
        baseline=_rows(question.baseline),
        of_number=question.features.of_number.astype("<i4").tobytes(),
        of_text=question.features.of_text.astype("<i4").tobytes(),
        features=len(question.features.names),
        method=question.method.value if question.method else None,
        evaluations=question.evaluations,
        until=now + (until - now) * _COMPUTING_SHARE,
    )


def _rows(table: Table) -> Rows:
    return Rows(numbers=table.numbers.astype("<f4").tobytes(), texts=table.texts)


def _explained_row(row: frames.ExplainedRow) -> ExplainedRow:
    found = Attributions(
        answer=row.answer,
        baseline_answer=row.baseline_answer,
        amounts=np.array(row.amounts),
        errors=np.array(row.errors),
        evaluations=row.evaluations,
        samples=row.samples,
        stop=row.stop,
    )
    return ExplainedRow(row.place, Method(row.method), found)


def _too_slow() -> DeadlineExceeded:
    return DeadlineExceeded(
        "EXPLANATION_TOO_SLOW",
        "nothing could be said in time; allow more, ask for fewer rows, or cut tensors into fewer patches",
    )


def _failure(reply: Reply, version: ServedVersion) -> HeadraceError:
    name = f"{version.model} version {version.version}"
    match reply.failure:
        case "METHOD_NOT_APPLICABLE":
            return FailedPrecondition(
                reply.failure,
                "integrated gradients need numbers, none of them missing, and a model without jumps; "
                f"{name} has texts, categories, comparisons or the like, or a row lacks a value: use Shapley "
                "sampling",
            )
        case "ANSWER_DEPENDS_ON_BATCH":
            return FailedPrecondition(
                reply.failure,
                f"{name} answers a row in one way alone and in another among others, or by chance: what "
                "moved its answer cannot be said",
            )
        case "TOO_FEW_EVALUATIONS":
            sentence = f"at least {reply.needed:,} evaluations are needed; allow them, or ask for fewer rows"
            return InvalidArgument(
                reply.failure, sentence, fields=[FieldViolation("max_evaluations", sentence)]
            )
        case "EXPLAINER_OUT_OF_MEMORY":
            return ResourceExhausted(
                reply.failure,
                f"{name} does not fit into the memory for explanations; ask for fewer rows, or raise "
                "HEADRACE_INFERENCE_EXPLAIN_MEMORY_BYTES",
            )
        case "PYTORCH_MISSING":
            return FailedPrecondition(
                reply.failure,
                f"{name} is a program of PyTorch's, which cannot be imported here; "
                "HEADRACE_INFERENCE_TORCH_PATH tells the inference service in which folder it is",
            )
        case "PACKAGE_NOT_READY":
            return FailedPrecondition(reply.failure, f"{name} cannot be run to be explained: {reply.why}")
        case "EXPLANATION_TOO_SLOW":
            return _too_slow()
        case _:
            return FailedPrecondition(
                "MODEL_FAILED",
                f"{name} does not answer a row, the baseline or a mix of them with numbers; "
                "`headrace predict` shows what it says of each",
            )
