"""What is added to a classifier's answers."""

from __future__ import annotations

import pytest

from headrace.inference.domain.class_names import ClassNames, class_names
from headrace.inference.domain.deployments import ServedVersion, Tensor

SCORES = Tensor("scores", "FP32", (-1, 2))
LABEL = Tensor("label", "INT64", (-1,))
CLASS = Tensor("class", "BYTES", (-1,))
TEXTS = ('"cat"', '"dog"')


def named(outputs: tuple[Tensor, ...], classes: tuple[str, ...]) -> ClassNames:
    return class_names(ServedVersion("m", 1, "", "", (), outputs, classes, b"", ""))


@pytest.mark.parametrize(
    ("outputs", "classes", "added"),
    [
        ((SCORES, LABEL), TEXTS, (CLASS,)),
        ((SCORES,), TEXTS, (LABEL, CLASS)),
        # The label says such classes itself.
        ((SCORES, LABEL), ("0", "1"), ()),
        ((SCORES,), ("5", "7"), (LABEL,)),
        # What the model answers itself stays.
        ((SCORES, LABEL, CLASS), TEXTS, ()),
        # Nothing tells which class it is: no scores, or not one for each class.
        ((Tensor("score", "FP32", (-1,)),), TEXTS, ()),
        ((SCORES,), ('"a"', '"b"', '"c"'), ()),
        ((Tensor("label", "BYTES", (-1,)),), TEXTS, ()),
        ((SCORES,), (), ()),
    ],
)
def test_what_is_added(
    outputs: tuple[Tensor, ...], classes: tuple[str, ...], added: tuple[Tensor, ...]
) -> None:
    assert named(outputs, classes).added == added


def test_classes_are_named_as_they_are_and_labelled_by_value_or_place() -> None:
    texts = named((SCORES,), TEXTS)
    assert (texts.names, texts.values, texts.scores) == (("cat", "dog"), (0, 1), "scores")
    numbers = named((SCORES,), ("5", "7"))
    assert (numbers.names, numbers.values) == (("5", "7"), (5, 7))
    fractions = named((SCORES,), ("0.5", "1.5"))
    assert (fractions.names, fractions.values) == (("0.5", "1.5"), (0, 1))
