"""The process that explains: reads tasks from its standard input, and answers on its standard output.

It has the lowest priority, so many bytes of memory and no more, and one thread for the model. It knows nobody
but the service that started it, keeps one model, and nothing of a task. When the machine runs out of memory,
the kernel takes it first.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from headrace.inference.domain.attribution import (
    Comparison,
    Numbers,
    OutOfTime,
    Texts,
    TooFewEvaluations,
    integrated_gradients,
    shapley_sampling,
)
from headrace.inference.explainer.frames import LENGTH, ExplainedRow, Method, Reply, Rows, Task
from headrace.inference.explainer.graph import is_continuous

_LOWEST_PRIORITY: Final = 19
_KILLED_FIRST: Final = "1000"
# ONNX Runtime's messages may hold a row's values.
_FATAL_ONLY: Final = 4


class ModelFailed(Exception):  # noqa: N818 - what it is
    """The model does not load, does not answer, or answers what is no number."""


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model."""

    digest: str
    session: onnxruntime.InferenceSession
    continuous: bool

    @classmethod
    def load(cls, task: Task) -> Model:
        """Raises ModelFailed, MemoryError."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _FATAL_ONLY
        with _of_the_model():
            continuous = is_continuous(Path(task.file), frozenset((task.numbers, task.texts)), task.output)
            session = onnxruntime.InferenceSession(task.file, options, providers=["CPUExecutionProvider"])
        return cls(task.digest, session, continuous)

    def answer(self, task: Task, numbers: Numbers, texts: Texts) -> Numbers:
        """What it answers to rows: [rows, values]. Raises ModelFailed, MemoryError."""
        inputs: dict[str, NDArray[np.generic]] = {}
        if task.numbers:
            inputs[task.numbers] = numbers.astype(np.float32)
        if task.texts:
            inputs[task.texts] = np.ascontiguousarray(texts)
        with _of_the_model():
            output = np.asarray(self.session.run([task.output], inputs)[0], np.float64)
        if not np.isfinite(output).all():
            raise ModelFailed
        return output.reshape(len(numbers), -1)


@contextmanager
def _of_the_model() -> Iterator[None]:
    """Turn what the runtime raises, which has no common type, into ModelFailed or MemoryError."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise MemoryError if "alloc" in str(error) else ModelFailed from None


def explained(model: Model, task: Task, until: float) -> Reply:
    """A task's rows, each in its share of the time; or what failed, but for MemoryError."""
    rows: list[ExplainedRow] = []
    comparisons = _comparisons(task)
    try:
        for left, row in zip(range(len(comparisons), 0, -1), comparisons, strict=True):
            now = time.monotonic()
            evaluations = task.evaluations // len(comparisons)
            rows.append(_explained_row(model, task, row, evaluations, now + (until - now) / left))
    except ModelFailed:
        return Reply(failure="MODEL_FAILED")
    except OutOfTime:
        return Reply(failure="EXPLANATION_TOO_SLOW")
    except TooFewEvaluations as error:
        return Reply(failure="TOO_FEW_EVALUATIONS", needed=error.needed * len(comparisons))
    except _NoLine:
        return Reply(failure="METHOD_NOT_APPLICABLE")
    return Reply(rows=tuple(rows))


class _NoLine(Exception):  # noqa: N818
    """Integrated gradients are asked for, and there is no line, or the model may jump on it."""


def _explained_row(model: Model, task: Task, row: Comparison, evaluations: int, until: float) -> ExplainedRow:
    place = task.place
    if place is None:
        place = int(model.answer(task, row.numbers[None], row.texts[None])[0].argmax())

    def answer(numbers: Numbers, texts: Texts) -> Numbers:
        return model.answer(task, numbers, texts)[:, place]

    def late() -> bool:
        return time.monotonic() > until

    has_line = model.continuous and row.has_line()
    method: Method = task.method or ("INTEGRATED_GRADIENTS" if has_line else "SHAPLEY_SAMPLING")
    if method == "SHAPLEY_SAMPLING":
        # The same for the same row: an explanation can be repeated.
        random = np.random.default_rng(0)
        found = shapley_sampling(row, answer, evaluations=evaluations, late=late, random=random)
    elif has_line:
        found = integrated_gradients(row, answer, evaluations=evaluations, late=late)
    else:
        raise _NoLine
    return ExplainedRow(
        place=place,
        answer=found.answer,
        baseline_answer=found.baseline_answer,
        gap=found.gap,
        method=method,
        amounts=tuple(found.amounts),
        errors=tuple(found.errors),
        evaluations=found.evaluations,
        samples=found.samples,
        stop=found.stop,
    )


def _comparisons(task: Task) -> list[Comparison]:
    of_number, of_text = (np.frombuffer(places, "<i4") for places in (task.of_number, task.of_text))
    baseline_numbers, baseline_texts = (one[0] for one in _arrays(task.baseline, len(of_number)))
    numbers, texts = _arrays(task.rows, len(of_number))
    return [
        Comparison(*row, baseline_numbers, baseline_texts, of_number, of_text, task.features)
        for row in zip(numbers, texts, strict=True)
    ]


def _arrays(rows: Rows, columns: int) -> tuple[Numbers, Texts]:
    """Numbers and texts, each [rows, columns]."""
    count = len(rows.texts)
    numbers = np.frombuffer(rows.numbers, "<f4").astype(np.float64).reshape(count, columns)
    return numbers, np.array(rows.texts, dtype=object).reshape(count, -1)


def run(tasks: BinaryIO, replies: BinaryIO) -> None:
    """Answer tasks until there are no more."""
    model: Model | None = None
    while header := tasks.read(LENGTH.size):
        task = Task.model_validate_json(tasks.read(*LENGTH.unpack(header)))
        until = time.monotonic() + task.seconds
        try:
            if model is None or model.digest != task.digest:
                # One at a time: the one before goes first.
                model = None
                model = Model.load(task)
            reply = explained(model, task, until)
        except ModelFailed:
            reply = Reply(failure="MODEL_FAILED")
        except MemoryError:
            reply = Reply(failure="EXPLAINER_OUT_OF_MEMORY")
        replies.write(reply.packed())
        replies.flush()


def main(memory_bytes: int) -> None:
    """Become a process that is in nobody's way, then `run`."""
    os.nice(_LOWEST_PRIORITY)
    Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST)
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as replies:
        # Whatever a model's runtime prints is no reply.
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        try:
            run(sys.stdin.buffer, replies)
        except Exception as error:
            # The message may hold a row's values, and this goes into the service's log.
            traceback.print_tb(error.__traceback__)
            sys.exit(f"explaining failed: {type(error).__name__}")


if __name__ == "__main__":
    main(int(sys.argv[1]))
