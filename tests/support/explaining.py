"""What the process that explains is asked in tests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headrace.inference.explainer.frames import Method, Rows, Task
from headrace.model_formats import ModelFormat

ROWS = [[64.0, 1.62], [25.0, 1.91]]
BASELINE = [40.0, 1.75]


def a_task(
    file: Path,
    rows: Sequence[Sequence[float]] = ROWS,
    baseline: Sequence[float] = BASELINE,
    *,
    texts: Sequence[Sequence[str]] = (),
    baseline_texts: Sequence[str] = (),
    method: Method | None = None,
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
