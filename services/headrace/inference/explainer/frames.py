"""What the service and the process that explains say to each other: a length of four bytes, then JSON."""

from __future__ import annotations

import struct
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from headrace.inference.domain.attribution import Stop
from headrace.model_formats import ModelFormat

LENGTH: Final = struct.Struct(">I")
# What the process says when it has its runtime, before its first reply: a length of nothing.
READY: Final = LENGTH.pack(0)

Method: TypeAlias = Literal["INTEGRATED_GRADIENTS", "SHAPLEY_SAMPLING"]
FailureCode: TypeAlias = Literal[
    "MODEL_FAILED",
    "METHOD_NOT_APPLICABLE",
    "ANSWER_DEPENDS_ON_BATCH",
    "TOO_FEW_EVALUATIONS",
    "EXPLANATION_TOO_SLOW",
    "EXPLAINER_OUT_OF_MEMORY",
    "PYTORCH_MISSING",
    "PACKAGE_NOT_READY",
]
Runtime: TypeAlias = Literal["onnx", "torch", "python"]
"""What a process evaluates models with: it has one, for its whole life."""


class _Frame(BaseModel):
    # Arrays travel as bytes, little-endian.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    def packed(self) -> bytes:
        """Length and JSON."""
        data = self.model_dump_json().encode()
        return LENGTH.pack(len(data)) + data


class Rows(_Frame):
    """FP32 numbers [rows, columns], and a row's texts."""

    numbers: bytes
    texts: tuple[tuple[str, ...], ...]


class Task(_Frame):
    """Rows of one model to explain.

    `file` is where the model lies while the process has not loaded it, which it knows by `key`. `numbers` and
    `texts` name its inputs, empty for none, `outputs` all outputs in order. `of_number` and `of_text` have
    each column's feature, INT32. `place`: of the explained value in a row of `output`; None: the largest
    one's. `until`: when there must be a reply, by the monotonic clock, which a machine's processes share.
    """

    file: str
    key: str
    format: ModelFormat
    numbers: str
    texts: str
    outputs: tuple[str, ...]
    output: str
    place: int | None
    rows: Rows
    baseline: Rows
    of_number: bytes
    of_text: bytes
    features: int
    method: Method | None
    evaluations: int
    until: float


class ExplainedRow(_Frame):
    """One row's amounts and errors, a number for each feature."""

    place: int
    answer: float
    baseline_answer: float
    gap: float
    method: Method
    amounts: tuple[float, ...]
    errors: tuple[float, ...]
    evaluations: int
    samples: int
    stop: Stop


class Reply(_Frame):
    """Rows in the task's order, or why there are none.

    `needed`: so many evaluations would do. `why`: of a package that is not there, what is wrong with it.
    """

    rows: tuple[ExplainedRow, ...] = ()
    failure: FailureCode | None = None
    needed: int = 0
    why: str = ""


class PackageQuestion(_Frame):
    """Rows for a package: FP32 `data` of the input `numbers`, and `words` of the input `texts`."""

    rows: int
    numbers: str
    data: bytes
    texts: str
    words: tuple[tuple[str, ...], ...]


class PackageAnswer(_Frame):
    """Values FP64 [rows, values], or what failed; neither where the package is there."""

    values: bytes = b""
    failure: str = ""
