"""What can be asked about a model's answers, and what is found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.errors import FailedPrecondition, FieldViolation, InvalidArgument
from headrace.inference.domain.attribution import Attributions
from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.domain.features import Features, read_features
from headrace.model_formats import ModelFormat

_NUMBERS: Final = "FP32"
_TEXTS: Final = "BYTES"
_ANSWERS: Final = ("FP32", "FP64", "FP16")
# How many inputs of numbers, and of texts. A program of PyTorch's takes no texts.
_KINDS: Final = {
    ModelFormat.ONNX: frozenset(((1, 0), (0, 1), (1, 1))),
    ModelFormat.PYTHON: frozenset(((1, 0), (0, 1), (1, 1))),
    ModelFormat.TORCHSCRIPT: frozenset(((1, 0),)),
    ModelFormat.TORCH_EXPORT: frozenset(((1, 0),)),
}
_SHOWN_CLASSES: Final = 20


class Method(StrEnum):
    """How shares of an answer are found."""

    INTEGRATED_GRADIENTS = "INTEGRATED_GRADIENTS"
    SHAPLEY_SAMPLING = "SHAPLEY_SAMPLING"


class BaselineKind(StrEnum):
    """What a row is compared with."""

    TRAINING = "TRAINING"
    ZERO = "ZERO"
    ROW = "ROW"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of features: FP32 numbers [rows, columns], and each row's texts."""

    numbers: NDArray[np.float32]
    texts: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class ExplainedModel:
    """What of a version is asked: its inputs' names, empty for none, its outputs', the explained one's."""

    numbers: str
    texts: str
    outputs: tuple[str, ...]
    output: str
    number_columns: int
    text_columns: int

    @classmethod
    def of(cls, version: ServedVersion) -> ExplainedModel:
        """Raises FailedPrecondition NOT_EXPLAINABLE."""
        numbers = [tensor for tensor in version.inputs if tensor.datatype == _NUMBERS]
        texts = [tensor for tensor in version.inputs if tensor.datatype == _TEXTS]
        outputs = [tensor for tensor in version.outputs if tensor.datatype in _ANSWERS]
        known = len(version.inputs) == len(numbers) + len(texts)
        kinds = _KINDS.get(version.format, frozenset())
        if not known or (len(numbers), len(texts)) not in kinds or not outputs:
            raise _not_explainable(version)
        columns = [_columns(version, tensor) for tensor in (*numbers, *texts)]
        return cls(
            numbers=numbers[0].name if numbers else "",
            texts=texts[0].name if texts else "",
            outputs=tuple(tensor.name for tensor in version.outputs),
            output=outputs[0].name,
            number_columns=columns[0] if numbers else 0,
            text_columns=columns[-1] if texts else 0,
        )

    def features(self, version: ServedVersion, patches: int) -> Features:
        """Those that the signature names; where it names others than the model takes, a column each."""
        named = read_features(version.features, version.texts, patches)
        if (len(named.of_number), len(named.of_text)) == (self.number_columns, self.text_columns):
            return named
        numbers, texts = (
            [f"{name} {column}" for column in range(columns)]
            for name, columns in ((self.numbers, self.number_columns), (self.texts, self.text_columns))
        )
        return read_features(numbers, texts, patches)

    def table(self, numbers: Sequence[float], texts: Sequence[str]) -> Table:
        """Make rows of what comes row by row. Raises InvalidArgument INVALID_ROWS."""
        rows = len(numbers) // self.number_columns if self.number_columns else len(texts) // self.text_columns
        if not rows or (len(numbers), len(texts)) != (rows * self.number_columns, rows * self.text_columns):
            sentence = (
                f"a row of this model has {self.number_columns} numbers and {self.text_columns} texts; "
                f"{len(numbers)} numbers and {len(texts)} texts are no rows of it"
            )
            raise InvalidArgument("INVALID_ROWS", sentence, fields=[FieldViolation("rows", sentence)])
        return Table(
            np.asarray(numbers, np.float32).reshape(rows, self.number_columns),
            tuple(
                tuple(texts[first : first + self.text_columns])
                for first in range(0, rows * max(1, self.text_columns), max(1, self.text_columns))
            ),
        )

    def logged(self, inputs: Mapping[str, object]) -> Table:
        """The rows of a prediction in the log. Raises FailedPrecondition INPUTS_NOT_STORED, INVALID_ROWS."""
        numbers = [float(text) for text in _logged_values(inputs, self.numbers)]
        return self.table(numbers, _logged_values(inputs, self.texts))

    def place(self, version: ServedVersion, answer_class: str) -> int | None:
        """Where in the output a class is; None for none. Raises InvalidArgument UNKNOWN_CLASS."""
        if not answer_class:
            return None
        for place, known in enumerate(version.classes):
            if answer_class in (known, _bare(known)):
                return place
        shown = ", ".join(version.classes[:_SHOWN_CLASSES]) or "no classes"
        sentence = f"{version.model} version {version.version} tells {shown} apart, and not {answer_class!r}"
        raise InvalidArgument("UNKNOWN_CLASS", sentence, fields=[FieldViolation("answer_class", sentence)])


@dataclass(frozen=True, slots=True)
class Question:
    """Rows of a model that are to be explained, each compared with the one row of `baseline`.

    `place`: of the explained value in a row of the output; None: the largest one's. `method`: None for the
    one that suits the row. `evaluations`: of all rows together.
    """

    rows: Table
    baseline: Table
    features: Features
    place: int | None
    method: Method | None
    evaluations: int


@dataclass(frozen=True, slots=True)
class ExplainedRow:
    """What was found about a row; `place` as in the question."""

    place: int
    method: Method
    attributions: Attributions


def baseline_row(features: Features, typical: Mapping[str, float | str]) -> tuple[list[float], list[str]]:
    """A row of typical values: where there is none, and for the parts of tensors, 0 and the empty text."""
    names = features.names
    numbers = [typical.get(names[place], 0.0) for place in features.of_number]
    texts = [typical.get(names[place], "") for place in features.of_text]
    return (
        [value if isinstance(value, float) else 0.0 for value in numbers],
        [value if isinstance(value, str) else "" for value in texts],
    )


def value_texts(row: int, table: Table, features: Features) -> list[str]:
    """Each feature's value, as JSON; empty for the parts of tensors."""
    texts = [""] * len(features.names)
    scalars = features.scalars
    for value, place in zip(table.numbers[row].tolist(), features.of_number.tolist(), strict=True):
        if features.names[place] in scalars:
            texts[place] = _number_text(value)
    for text, place in zip(table.texts[row], features.of_text.tolist(), strict=True):
        texts[place] = json.dumps(text, ensure_ascii=False)
    return texts


def _number_text(value: float) -> str:
    if math.isnan(value):
        return "null"
    # The shortest text that is the same FP32.
    return str(np.float32(value)).removesuffix(".0")


def _bare(known: str) -> str:
    value = json.loads(known)
    return value if isinstance(value, str) else known


def _columns(version: ServedVersion, tensor: Tensor) -> int:
    match tensor.shape:
        case (_, int(columns)) if columns > 0:
            return columns
        case _:
            raise _not_explainable(version)


def _logged_values(inputs: Mapping[str, object], name: str) -> list[str]:
    """A logged tensor's values as texts: JSON has no other form of numbers that are not finite."""
    match inputs.get(name) if name else {"data": []}:
        case {"data": list(values)} if values or not name:
            return [str(value) for value in values]
        case _:
            raise FailedPrecondition(
                "INPUTS_NOT_STORED",
                "the log has not this prediction's inputs: they were too large; explain the rows themselves",
            )


def _not_explainable(version: ServedVersion) -> FailedPrecondition:
    return FailedPrecondition(
        "NOT_EXPLAINABLE",
        f"{version.model} version {version.version}, which is {version.format}, cannot be explained: that "
        "takes one input of FP32 [-1,n], one of BYTES [-1,n], or both (of PyTorch's programs the first one), "
        "and an output of numbers",
    )
