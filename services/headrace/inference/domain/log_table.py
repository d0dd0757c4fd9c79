"""The columns that a deployment's predictions have in a dataset, one row for each row of a request.

A number is a number, whatever its tensor's type, and everything else is a text: so the prediction log has
them, and so the versions of a model may differ in types and share a table.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from headrace.inference.domain.class_names import class_names
from headrace.inference.domain.deployments import ANSWER, ServedVersion, Tensor

# The inputs whose columns a signature names.
_FEATURES: Final = "features"
_TEXTS: Final = "texts"
# A tensor with more values in a row is an image, or the like, and no columns.
MAX_WIDTH: Final = 64
_MAX_NAME: Final = 63


class Kind(enum.Enum):
    """What a column holds."""

    NUMBER = "number"
    TEXT = "text"


KEY: Final = "subject"
"""The key of the dataset: whose data a request was about or, where it named nobody, the prediction's id."""
ANSWER_COLUMN: Final = "answer"
PREDICTION_ID: Final = "prediction_id"
OWN: Final = (
    KEY,
    PREDICTION_ID,
    "deployment",
    "model",
    "model_version",
    "row",
    "seconds",
    "trace_id",
    "segment",
    "shadow",
    ANSWER_COLUMN,
)
"""Columns that each table of predictions has, whatever its models take."""


@dataclass(frozen=True, slots=True)
class Column:
    """One value of each row of a request, or of its answer.

    It is the value at `place` among the `width` that a row has in `tensor`. `field`: the field of the
    training dataset that it was, "" where there is none.
    """

    name: str
    kind: Kind
    tensor: str
    place: int
    width: int
    is_answer: bool
    field: str = ""


def columns_of(version: ServedVersion) -> tuple[Column, ...]:
    """Inputs, then answers; tensors of more than `MAX_WIDTH` values a row, or of any size, are left out.

    The answer that `ANSWER` names, or else the first that is one value, is called `answer`.
    """
    taken = set(OWN)
    found: list[Column] = []
    for tensor in version.inputs:
        for place, (name, field) in enumerate(_names(tensor, version)):
            if name:
                own = _free(name, "input_", taken)
                found.append(_column(own, tensor, place, field=field))
    answers = (*version.outputs, *class_names(version).added)
    main = _main(answers)
    for tensor in answers:
        width = _width(tensor)
        for place in range(width):
            if tensor is main:
                own = ANSWER_COLUMN
            else:
                suffix = "" if width == 1 else f"_{place}"
                own = _free(f"answer_{tensor.name}{suffix}", "answer_", taken)
            found.append(_column(own, tensor, place, is_answer=True))
    return tuple(found)


def fitting(columns: Sequence[Column], known: Mapping[str, Kind]) -> tuple[Column, ...]:
    """The columns beside those that a table has: one whose name is another kind's there has another name."""
    return tuple(
        replace(column, name=f"{column.name[: _MAX_NAME - 7]}_{column.kind.value}")
        if known.get(column.name, column.kind) is not column.kind
        else column
        for column in columns
    )


def _column(name: str, tensor: Tensor, place: int, *, is_answer: bool = False, field: str = "") -> Column:
    kind = Kind.TEXT if tensor.datatype == "BYTES" else Kind.NUMBER
    return Column(name, kind, tensor.name, place, math.prod(tensor.shape[1:]), is_answer, field)


def _names(tensor: Tensor, version: ServedVersion) -> Iterator[tuple[str, str]]:
    """A name for each value of a row, "" for what is no column, and the training dataset's field."""
    named = {_FEATURES: version.features, _TEXTS: version.texts}.get(tensor.name, ())
    if named and len(named) == math.prod(tensor.shape[1:]):
        # The parts of an image are no columns.
        yield from (("", "") if name.endswith("]") else (name, name) for name in named)
        return
    width = _width(tensor)
    for place in range(width):
        # An input of one value may be a field that its model was trained on under the same name.
        yield (tensor.name, tensor.name) if width == 1 else (f"{tensor.name}_{place}", "")


def _width(tensor: Tensor) -> int:
    """Values of a row that are columns; 0 where they are none."""
    sizes = tensor.shape[1:]
    width = math.prod(sizes)
    return width if all(size > 0 for size in sizes) and width <= MAX_WIDTH else 0


def _main(answers: Sequence[Tensor]) -> Tensor | None:
    single = [tensor for tensor in answers if _width(tensor) == 1]
    return next((tensor for tensor in single if tensor.name == ANSWER), next(iter(single), None))


def _free(name: str, prefix: str, taken: set[str]) -> str:
    """A name that a dataset's field may have, and no other column has; taken from now on."""
    plain = re.sub(r"[^a-z0-9_]", "_", name.lower())
    if not re.match(r"[a-z]", plain) or plain in taken:
        plain = prefix + plain
    plain = plain[:_MAX_NAME]
    number, own = 1, plain
    while own in taken:
        number += 1
        own = f"{plain[: _MAX_NAME - 6]}_{number}"
    taken.add(own)
    return own
