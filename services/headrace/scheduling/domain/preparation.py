"""What a pipeline may ask for its features' preparation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.errors import FieldViolation

_TEXT: Final = "string"
# Float32 holds every whole number up to 2^24: values that are encoded reach the model as float32.
_ENCODABLE: Final = frozenset({"bool", "int8", "int16", "int32", "int64", _TEXT})
FLOAT32_MAX: Final = (2 - 2**-23) * 2.0**127
# As training has it.
MAX_VALUES: Final = 1 << 20
_IMAGE_DIMENSIONS: Final = (2, 3)
# What can be measured over many columns at once in one pass.
_POOLED: Final = ("standard", "min_max")
_NO_NUMBER: Final = "a time, and models take numbers; send the seconds since a time that means something"


@dataclass(frozen=True, slots=True)
class Preparation:
    """One feature's preparation, as far as scheduling judges it."""

    feature: str
    encoded: bool = False
    missing: str = ""
    constant: float = 0.0
    indicator: bool = False
    clip_min: float | None = None
    clip_max: float | None = None
    log: bool = False
    # The API's word.
    normalise: str = "none"
    # To height and width.
    resize: tuple[int, int] | None = None
    per_channel: bool = False
    # Of a text, instead of `constant`.
    text_constant: str | None = None


def preparation_violations(
    preparations: Sequence[Preparation], types: Mapping[str, str], shapes: Mapping[str, Sequence[int]]
) -> Iterator[FieldViolation]:
    """Say what makes no sense; `types` are the features' types, by name, in the schema's words.

    `shapes` are those of the tensors among them.
    """
    seen: set[str] = set()
    for index, wish in enumerate(preparations):
        path = f"spec.training.preparations[{index}]"
        if wish.feature not in types:
            yield FieldViolation(f"{path}.feature", f'the dataset has no feature "{wish.feature}"')
            continue
        if wish.feature in seen:
            yield FieldViolation(f"{path}.feature", f'"{wish.feature}" is prepared twice')
        seen.add(wish.feature)
        yield from _violations(path, wish, types[wish.feature])
        yield from _image_violations(path, wish, types[wish.feature], shapes.get(wish.feature, ()))
    for index, (name, type_) in enumerate(types.items()):
        if type_ == _TEXT and name not in seen:
            yield FieldViolation(
                f"spec.dataset.schema.features[{index}]",
                f"{name} is text, and models take numbers; say preprocess.features.{name}.encode: "
                "one_hot or ordinal, or make it an attribute",
            )


def _violations(path: str, wish: Preparation, type_: str) -> Iterator[FieldViolation]:
    if type_ == "timestamp":
        yield FieldViolation(f"{path}.feature", f"{wish.feature} is {_NO_NUMBER}")
        return
    if type_ == _TEXT and not wish.encoded:
        yield FieldViolation(
            f"{path}.encode", f"{wish.feature} is text, and models take numbers; say one_hot or ordinal"
        )
        return
    for name, bound in (
        ("constant", wish.constant),
        ("clip_min", wish.clip_min),
        ("clip_max", wish.clip_max),
    ):
        # Nor is NaN.
        if bound is not None and not abs(bound) <= FLOAT32_MAX:
            yield FieldViolation(
                f"{path}.{name}", "must be a number of float32, which models take: at most 3.4e38 either way"
            )
    if wish.clip_min is not None and wish.clip_max is not None and wish.clip_min > wish.clip_max:
        yield FieldViolation(f"{path}.clip_min", f"{wish.clip_min:g} is above clip_max, {wish.clip_max:g}")
    if wish.indicator and not wish.missing:
        yield FieldViolation(f"{path}.indicator", "needs a rule for what stands for a missing value")
    if wish.missing == "constant" and (type_ == _TEXT) != (wish.text_constant is not None):
        wanted = "a text, in quotes" if type_ == _TEXT else "a number"
        yield FieldViolation(f"{path}.missing", f"{wish.feature} is {type_}: its constant must be {wanted}")
    if wish.encoded:
        yield from _encoded_violations(path, wish, type_)


def _image_violations(
    path: str, wish: Preparation, type_: str, shape: Sequence[int]
) -> Iterator[FieldViolation]:
    is_image = len(shape) in _IMAGE_DIMENSIONS
    what = f"a tensor with the shape {list(shape)}" if shape else type_
    for name, wanted in (("resize", wish.resize is not None), ("per_channel", wish.per_channel)):
        if wanted and not is_image:
            yield FieldViolation(
                f"{path}.{name}",
                "is for a tensor of shape [height, width] or [height, width, channels]; "
                f"{wish.feature} is {what}",
            )
    if wish.resize is not None and is_image:
        values = math.prod((*wish.resize, *shape[2:]))
        if values > MAX_VALUES:
            yield FieldViolation(
                f"{path}.resize", f"makes {values:,} values of it; {MAX_VALUES:,} are the most"
            )
    if wish.per_channel and wish.normalise not in _POOLED:
        yield FieldViolation(f"{path}.per_channel", "goes with normalise: standard or min_max")


def _encoded_violations(path: str, wish: Preparation, type_: str) -> Iterator[FieldViolation]:
    if type_ not in _ENCODABLE:
        yield FieldViolation(
            f"{path}.encode", f"is for whole numbers and texts, and {wish.feature} is {type_}"
        )
    if wish.missing in ("mean", "median"):
        yield FieldViolation(
            f"{path}.missing", f"{wish.feature} is encoded and has no {wish.missing}; give a constant"
        )
    asked = {
        "clip_min": wish.clip_min is not None,
        "clip_max": wish.clip_max is not None,
        "log": wish.log,
        "normalise": wish.normalise != "none",
    }
    for name, wanted in asked.items():
        if wanted:
            yield FieldViolation(f"{path}.{name}", f"is for numbers, and {wish.feature} is encoded")
