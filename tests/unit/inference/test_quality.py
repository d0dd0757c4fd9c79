from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from headrace.inference.domain.quality import (
    Cell,
    Met,
    answers_of,
    in_answers_terms,
    label_fault,
    measures,
    metrics,
    restated,
)

pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=50)


@given(pairs)
def test_classification_is_what_scikit_learn_says(pairs: list[tuple[int, int]]) -> None:
    answers, labels = zip(*pairs, strict=True)
    found = metrics(
        [Cell(answer, label, pairs.count((answer, label))) for answer, label in set(pairs)], classes=True
    )
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, answers))
    assert ("recall" in found) == (1 in labels)
    assert ("precision" in found) == (1 in answers)
    if 1 in labels:
        assert found["recall"] == pytest.approx(reference.recall_score(labels, answers))
    if 1 in answers:
        assert found["precision"] == pytest.approx(reference.precision_score(labels, answers))


def test_classes_other_than_two_have_an_accuracy_alone() -> None:
    assert metrics([Cell(2, 2, 3), Cell(0, 2, 1)], classes=True) == {"accuracy": 0.75}


def test_regression() -> None:
    cells = [Cell(1.0, 2.0, 2), Cell(5.0, 3.0, 1), Cell(math.nan, 0.0, 4)]
    assert metrics(cells, classes=False) == {"mse": pytest.approx(2.0), "mae": pytest.approx(4 / 3)}


@pytest.mark.parametrize(
    ("classes", "label", "answer"),
    [
        (("0", "1"), 1.0, 1.0),
        (("0", "1"), "1", 1.0),
        (("3", "7"), 7.0, 7.0),
        (("false", "true"), "true", 1.0),
        (('"cat"', '"dog"'), "dog", 1.0),
        (("0.5", "1.5"), 1.5, 1.0),
        (("0.0", "2"), 2.0, 1.0),
    ],
)
def test_a_label_is_what_the_model_would_have_answered(
    classes: tuple[str, ...], label: float | str, answer: float
) -> None:
    assert in_answers_terms([Met(0.0, label, 2)], classes) == [Cell(0.0, answer, 2)]


def test_a_label_that_is_no_class_makes_every_answer_wrong() -> None:
    cells = in_answers_terms([Met(1.0, "dog", 3), Met(1.0, "cow", 1)], ('"cat"', '"dog"'))
    assert metrics(cells, classes=True) == {"accuracy": 0.75}


CLASSES = st.lists(st.sampled_from(('"a"', '"b"', '"c"', "-1", "0", "2", "0.5")), unique=True, max_size=7)


@given(CLASSES, CLASSES)
def test_two_models_say_a_class_alike_if_and_only_if_it_is_the_same_one(
    classes: list[str], others: list[str]
) -> None:
    said = restated(classes, others)
    for one, answer in answers_of(classes).items():
        for other, theirs in answers_of(others).items():
            assert (said.get(answer, answer) == theirs) == (one == other)
    meant = [said.get(answer, answer) for answer in answers_of(classes).values()]
    assert len(set(meant)) == len(meant)


def test_numbers_are_said_as_they_are() -> None:
    assert restated((), ('"a"',)) == restated(('"a"',), ()) == restated((), ()) == {}


def test_text_says_nothing_of_a_number() -> None:
    assert in_answers_terms([Met(1.0, "much", 3), Met(1.0, 2.0, 1)], ()) == [Cell(1.0, 2.0, 1)]


@pytest.mark.parametrize("classes", [True, False])
def test_without_feedback_nothing_is_claimed(classes: bool) -> None:
    assert metrics([], classes=classes) == {}


@given(pairs)
def test_measures_are_the_metrics_with_how_many_labels_each_is_of(pairs: list[tuple[int, int]]) -> None:
    cells = [Cell(answer, label, pairs.count((answer, label))) for answer, label in set(pairs)]
    found = measures(cells, classes=True, binary=True)
    assert {name: one.value for name, one in found.items()} == metrics(cells, classes=True)
    assert found["accuracy"].count == len(pairs)
    assert "recall" not in measures(cells, classes=True, binary=False)


@given(st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=2, max_size=50))
def test_a_mean_error_has_the_variance_of_the_errors(pairs: list[tuple[int, int]]) -> None:
    cells = [Cell(answer, label, pairs.count((answer, label))) for answer, label in set(pairs)]
    errors = [abs(answer - label) for answer, label in pairs]
    found = measures(cells, classes=False, binary=False)["mae"]
    assert (found.value, found.count) == (pytest.approx(statistics.mean(errors)), len(pairs))
    assert found.variance == pytest.approx(statistics.variance(errors))


@pytest.mark.parametrize(
    ("deployment", "prediction_id", "label", "field"),
    [
        ("", "p", 1.0, "deployment"),
        ("d" * 257, "p", 1.0, "deployment"),
        ("d", "", 1.0, "prediction_id"),
        ("d", "ü" * 129, 1.0, "prediction_id"),
        ("d", "a\0b", 1.0, "prediction_id"),
        ("d", "p", None, "label"),
        ("d", "p", math.nan, "number"),
        ("d", "p", -math.inf, "number"),
        ("d", "p", "a\0b", "text"),
    ],
)
def test_a_label_that_is_wrong_says_where(
    deployment: str, prediction_id: str, label: float | str | None, field: str
) -> None:
    fault = label_fault(deployment, prediction_id, label)
    assert fault is not None
    assert fault[0] == field


@pytest.mark.parametrize("label", [0.0, "", "benign"])
def test_a_label_is_a_number_or_a_text(label: float | str) -> None:
    assert label_fault("d" * 256, "ü" * 128, label) is None
