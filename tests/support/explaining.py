"""What the process that explains is asked in tests."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from headrace.errors import HeadraceError
from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.domain.explanations import ExplainedModel, ExplainedRow, Method, Question
from headrace.inference.explainer import frames
from headrace.inference.explainer.frames import Rows, Task
from headrace.inference.explainer.pool import ExplainerPool
from headrace.model_formats import ModelFormat
from headrace.objects import ObjectStore

WORKER = "headrace.inference.explainer.worker"
ROWS = [[64.0, 1.62], [25.0, 1.91]]
BASELINE = [40.0, 1.75]


def a_task(
    file: Path,
    rows: Sequence[Sequence[float]] = ROWS,
    baseline: Sequence[float] = BASELINE,
    *,
    texts: Sequence[Sequence[str]] = (),
    baseline_texts: Sequence[str] = (),
    method: frames.Method | None = None,
    seconds: float = 60.0,
    **changes: Any,
) -> Task:
    numbers = np.array(rows, np.float32)
    features = len(baseline) + len(baseline_texts)
    return Task(
        **{
            "file": str(file),
            "key": "1",
            "format": ModelFormat.ONNX,
            "numbers": "features",
            "texts": "texts" if texts else "",
            "outputs": ("probabilities",),
            "output": "probabilities",
            "place": None,
            "rows": Rows(
                numbers=numbers.tobytes(), texts=tuple(map(tuple, texts)) if texts else ((),) * len(numbers)
            ),
            "baseline": Rows(
                numbers=np.array(baseline, np.float32).tobytes(), texts=(tuple(baseline_texts),)
            ),
            "of_number": np.arange(len(baseline), dtype="<i4").tobytes(),
            "of_text": np.arange(len(baseline), features, dtype="<i4").tobytes(),
            "features": features,
            "method": method,
            "evaluations": 20_000,
            "until": time.monotonic() + seconds,
            **changes,
        }
    )


def workers() -> list[psutil.Process]:
    """This process's own: no other test runs at the same time."""
    return [child for child in psutil.Process().children() if WORKER in _command(child)]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        # It has ended, and nobody has asked how.
        return []


class Explaining:
    """A pool, and versions in an object store."""

    def __init__(self, pool: ExplainerPool, store: ObjectStore) -> None:
        self.pool = pool
        self.store = store

    async def version(
        self,
        number: int,
        model: bytes,
        *,
        outputs: int = 2,
        digest: str = "",
        form: ModelFormat = ModelFormat.ONNX,
    ) -> ServedVersion:
        await self.store.put(f"{number}.onnx", model)
        return ServedVersion(
            model="people",
            version=number,
            uri=self.store.uri(f"{number}.onnx"),
            sha256=digest or hashlib.sha256(model).hexdigest(),
            inputs=(Tensor("features", "FP32", (-1, 3)),),
            outputs=(Tensor("probabilities", "FP32", (-1, outputs)),),
            classes=(),
            signature=b"",
            traceparent="",
            format=form,
        )

    async def explain(
        self,
        version: ServedVersion,
        row: Sequence[float] = (2, 1, -1),
        *,
        method: Method | None = None,
        evaluations: int = 20_000,
    ) -> Sequence[ExplainedRow]:
        model = ExplainedModel.of(version)
        question = Question(
            rows=model.table(row, ()),
            baseline=model.table([0, 0, 0], ()),
            features=model.features(version, 8),
            place=None,
            method=method,
            evaluations=evaluations,
        )
        return await self.pool.explain(version, model, question)

    async def refused(
        self,
        version: ServedVersion,
        row: Sequence[float] = (2, 1, -1),
        *,
        method: Method | None = None,
        evaluations: int = 20_000,
    ) -> tuple[type[HeadraceError], str]:
        with pytest.raises(HeadraceError) as caught:
            await self.explain(version, row, method=method, evaluations=evaluations)
        return type(caught.value), caught.value.reason


MakeExplaining = Callable[..., Awaitable[Explaining]]
