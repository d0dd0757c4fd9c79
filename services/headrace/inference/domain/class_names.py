"""What a classifier's answer says of classes, beside the model's own outputs.

A client wants the class, and a model may answer a place in a list, or one score for each class. What is added
here is computed beside the model, from what its version's signature says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.domain.quality import whole_numbers

LABEL: Final = Tensor("label", "INT64", (-1,))
CLASS: Final = Tensor("class", "BYTES", (-1,))

_SCORES: Final = ("FP16", "FP32", "FP64")


@dataclass(frozen=True, slots=True)
class ClassNames:
    """How a version's answers name classes.

    `names` are in the order of the model's scores, `values` what the output `label` says of each. `scores`:
    the output whose largest value decides, empty where there is none. `added`: outputs that the model itself
    does not have.
    """

    names: tuple[str, ...] = ()
    values: tuple[int, ...] = ()
    scores: str = ""
    added: tuple[Tensor, ...] = ()


def class_names(version: ServedVersion) -> ClassNames:
    """How this version's answers name classes; nothing is added to those of a model without any.

    `label` is added where the model answers scores alone; `class` where classes are not whole numbers, which
    `label` says itself.
    """
    if not version.classes:
        return ClassNames()
    known = {tensor.name for tensor in version.outputs}
    scores = next((tensor.name for tensor in version.outputs if _is_scores(tensor, version.classes)), "")
    values = whole_numbers(version.classes)
    added = []
    if LABEL.name not in known and scores:
        added.append(LABEL)
    if values is None and CLASS.name not in known and (LABEL in version.outputs or LABEL in added):
        added.append(CLASS)
    return ClassNames(
        names=tuple(map(_name, version.classes)),
        values=tuple(range(len(version.classes))) if values is None else values,
        scores=scores,
        added=tuple(added),
    )


def answered_classes(version: ServedVersion) -> tuple[str, ...]:
    """The classes (JSON texts) that this version's answers are; none where they are other numbers."""
    labels = any(
        tensor.name == LABEL.name and tensor.datatype != CLASS.datatype for tensor in version.outputs
    )
    return version.classes if labels or LABEL in class_names(version).added else ()


def _is_scores(tensor: Tensor, classes: Sequence[str]) -> bool:
    return tensor.datatype in _SCORES and tensor.shape[1:] == (len(classes),)


def _name(text: str) -> str:
    value = json.loads(text)
    return value if isinstance(value, str) else text
