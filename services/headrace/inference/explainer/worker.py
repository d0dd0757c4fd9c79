"""The process that explains: reads tasks from its standard input, and answers on its standard output.

It has the lowest priority, so many bytes of memory and no more, and one thread for the model. It knows nobody
but the service that started it, keeps one model, and nothing of a task. When the machine runs out of memory,
the kernel takes it first. It evaluates models with ONNX Runtime, with PyTorch or as Python packages, and
imports only the one that it needs.
"""

from __future__ import annotations

import os
import re
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

import numpy as np
from pydantic import TypeAdapter

from headrace.inference.domain.attribution import (
    Comparison,
    Numbers,
    OutOfTime,
    Texts,
    TooFewEvaluations,
    integrated_differences,
    integrated_gradients,
    shapley_sampling,
)
from headrace.inference.explainer.frames import (
    LENGTH,
    READY,
    ExplainedRow,
    Method,
    Reply,
    Rows,
    Runtime,
    Task,
)
from headrace.inference.explainer.models import Model, ModelFailed, ModelNotReady

_LOWEST_PRIORITY: Final = 19
_KILLED_FIRST: Final = "1000"
# An answer's, or its distance's; between one row and several BFloat16 alone may round by 0.8 %.
_ALIKE: Final = 0.01
_ROUNDING: Final = 1e-6
# Of what is wrong with a package.
_MOST_CHARACTERS: Final = 500

Load: TypeAlias = Callable[[Task], Model]
"""Loads a task's model. Raises ModelFailed, ModelNotReady, MemoryError."""


def explained(model: Model, task: Task) -> Reply:
    """A task's rows, each in its share of the time; or what failed, but for MemoryError."""
    rows: list[ExplainedRow] = []
    comparisons = _comparisons(task)
    try:
        for left, row in zip(range(len(comparisons), 0, -1), comparisons, strict=True):
            now = time.monotonic()
            evaluations = task.evaluations // len(comparisons)
            rows.append(_explained_row(model, task, row, evaluations, now + (task.until - now) / left))
    except ModelFailed:
        return Reply(failure="MODEL_FAILED")
    except OutOfTime:
        return Reply(failure="EXPLANATION_TOO_SLOW")
    except TooFewEvaluations as error:
        return Reply(failure="TOO_FEW_EVALUATIONS", needed=error.needed * len(comparisons))
    except _NoLine:
        return Reply(failure="METHOD_NOT_APPLICABLE")
    except _NotApart:
        return Reply(failure="ANSWER_DEPENDS_ON_BATCH")
    return Reply(rows=tuple(rows))


class _NoLine(Exception):  # noqa: N818
    """Integrated gradients are asked for, and there is no line, or the model may jump on it."""


class _NotApart(Exception):  # noqa: N818
    """A row among others has another answer than alone, as it was served."""


def _explained_row(model: Model, task: Task, row: Comparison, evaluations: int, until: float) -> ExplainedRow:
    alone = model.answer(row.numbers[None], row.texts[None])[0]
    place = int(alone.argmax()) if task.place is None else task.place

    def answer(numbers: Numbers, texts: Texts) -> Numbers:
        return model.answer(numbers, texts)[:, place]

    def gradient(numbers: Numbers) -> Numbers:
        return model.gradients(numbers, place)

    def late() -> bool:
        return time.monotonic() > until

    has_line = model.continuous and row.has_line()
    method: Method = task.method or ("INTEGRATED_GRADIENTS" if has_line else "SHAPLEY_SAMPLING")
    if method == "SHAPLEY_SAMPLING":
        # The same for the same row: an explanation can be repeated.
        random = np.random.default_rng(0)
        found = shapley_sampling(row, answer, evaluations=evaluations, late=late, random=random)
    elif not has_line:
        raise _NoLine
    elif model.differentiable:
        found = integrated_gradients(row, answer, gradient, evaluations=evaluations, late=late)
    else:
        found = integrated_differences(row, answer, evaluations=evaluations, late=late)
    extent = max(abs(found.answer), abs(found.answer - found.baseline_answer))
    if abs(found.answer - alone[place]) > _ALIKE * extent + _ROUNDING:
        raise _NotApart
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


def run(tasks: BinaryIO, replies: BinaryIO, load: Load | None) -> None:
    """Answer tasks until there are no more. `load`: None where there is nothing to evaluate models with."""
    models = _Models(load)
    while header := tasks.read(LENGTH.size):
        task = Task.model_validate_json(tasks.read(*LENGTH.unpack(header)))
        reply = models.reply(task)
        replies.write(reply.packed())
        replies.flush()
    models.drop()


class _Models:
    """The one model that is loaded."""

    def __init__(self, load: Load | None) -> None:
        self._load = load
        self._model: Model | None = None
        self._key = ""

    def reply(self, task: Task) -> Reply:
        if self._load is None:
            return Reply(failure="PYTORCH_MISSING")
        try:
            if self._model is None or self._key != task.key:
                # One at a time: the one before goes first.
                self.drop()
                self._model, self._key = self._load(task), task.key
            reply = explained(self._model, task)
        except ModelFailed:
            reply = Reply(failure="MODEL_FAILED")
        except ModelNotReady as error:
            reply = Reply(failure="PACKAGE_NOT_READY", why=str(error)[:_MOST_CHARACTERS])
        except MemoryError:
            reply = Reply(failure="EXPLAINER_OUT_OF_MEMORY")
        if reply.failure == "MODEL_FAILED":
            # A package may have ended.
            self.drop()
        return reply

    def drop(self) -> None:
        if self._model is not None:
            self._model.close()
        self._model = None


def loader(runtime: Runtime, places: Sequence[str], memory_bytes: int) -> Load | None:
    """What loads models; None where PyTorch is asked for, and neither in its place nor installed.

    `places`: PyTorch's folder, or the Python for packages and their folder.
    """
    match runtime, places:
        case "onnx", _:
            from headrace.inference.explainer.onnx_model import OnnxModel

            return OnnxModel.load
        case "python", [python, folder]:
            from headrace.inference.explainer.package_model import PackageModel

            return partial(PackageModel.load, python=python, folder=folder, memory_bytes=memory_bytes)
        case _:
            return _torch_loader(places[0])


def _torch_loader(torch_path: str) -> Load | None:
    if torch_path and torch_path not in sys.path:
        # Behind the service's own, whose numpy is the one that is used here.
        sys.path.append(torch_path)
    try:
        from headrace.inference.explainer import torch_model
    except (ImportError, OSError):
        return None
    torch_model.prepare()
    return torch_model.TorchModel.load


def main(memory_bytes: int, runtime: Runtime, places: Sequence[str]) -> None:
    """Become a process that is in nobody's way, then `run`."""
    os.nice(_LOWEST_PRIORITY)
    Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Whatever a model or its runtime prints is no reply, and may hold a row's values. This itself is heard.
    warnings.simplefilter("ignore")
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    with os.fdopen(os.dup(1), "wb") as replies:
        with Path(os.devnull).open("wb") as nowhere:
            for printed in (1, 2):
                os.dup2(nowhere.fileno(), printed)
        load = loader(runtime, places, memory_bytes)
        # What a runtime's libraries alone take is not the model's: of PyTorch 0.7 GB.
        limit = memory_bytes + (_data_bytes() if runtime == "torch" else 0)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        replies.write(READY)
        replies.flush()
        try:
            run(sys.stdin.buffer, replies, load)
        except Exception as error:
            # The message may hold a row's values, and this goes into the service's log.
            traceback.print_tb(error.__traceback__)
            sys.exit(f"explaining failed: {type(error).__name__}")


def _data_bytes() -> int:
    """What counts against RLIMIT_DATA so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"^VmData:\s*(\d+) kB", status, re.MULTILINE)
    assert found
    return 1024 * int(found[1])


if __name__ == "__main__":
    main(int(sys.argv[1]), TypeAdapter[Runtime](Runtime).validate_python(sys.argv[2]), sys.argv[3:])
