"""Quality of live answers from the feedback that has arrived."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.inference.domain.gaps import Measure

MAX_ID_BYTES: Final = 256
"""What an index of PostgreSQL certainly takes: predictions are found by their ids."""
MAX_SEGMENT_BYTES: Final = 64


@dataclass(frozen=True, slots=True)
class Met:
    """How often an answer met a true label, as counted by the database; the label as its sender wrote it."""

    answer: float
    label: float | str
    count: int


@dataclass(frozen=True, slots=True)
class Cell:
    """How often an answer met a true label, both in the model's own terms."""

    answer: float
    label: float
    count: int


def in_answers_terms(counts: Iterable[Met], classes: Sequence[str]) -> list[Cell]:
    """Counts of a model with these classes (JSON texts; none: it answers with a number).

    A class is answered by its own value where all are whole numbers, else by its place in the list. A label
    that is no class is NaN, which no answer equals; text says nothing of a number, and is left out.
    """
    if not classes:
        return [
            Cell(met.answer, met.label, met.count) for met in counts if isinstance(met.label, int | float)
        ]
    answers = answers_of(classes)
    # By its text too: feedback may well call class 1 "1".
    answered = {text: answers[json.loads(text)] for text in classes} | answers
    return [Cell(met.answer, answered.get(met.label, math.nan), met.count) for met in counts]


def answers_of(classes: Sequence[str]) -> dict[float | str, float]:
    """How a model of these classes (JSON texts) answers each of them, by its value."""
    answers = whole_numbers(classes) or range(len(classes))
    return {json.loads(text): float(answer) for text, answer in zip(classes, answers, strict=True)}


def restated(classes: Sequence[str], others: Sequence[str]) -> dict[float, float]:
    """What a model of these classes says by other numbers than a model of the others, and how that one does.

    By place, a class is another number as soon as the dataset has one more before it. A class that the other
    model does not know is a number that it never answers. Nothing where one of them answers with numbers.
    """
    if not classes or not others or tuple(classes) == tuple(others):
        return {}
    known = answers_of(others)
    unknown = itertools.count(max(known.values()) + 1)
    meant = {
        answer: known[value] if value in known else next(unknown)
        for value, answer in answers_of(classes).items()
    }
    return {answer: other for answer, other in meant.items() if answer != other}


def whole_numbers(classes: Sequence[str]) -> tuple[int, ...] | None:
    """The classes (JSON texts) as numbers; None where one of them is none, or has a fraction."""
    values = [json.loads(text) for text in classes]
    return tuple(map(int, values)) if all(isinstance(value, int) for value in values) else None


def is_binary(cells: Iterable[Cell]) -> bool:
    """Whether all answers and labels are 0 or 1: then 1 is what is looked for."""
    return all({cell.answer, cell.label} <= {0.0, 1.0} for cell in cells)


def shares(cells: Sequence[Cell], *, binary: bool) -> dict[str, Measure]:
    """Accuracy, and of two classes recall and precision of 1; each with how many it is a share of."""
    total = sum(cell.count for cell in cells)
    if not total:
        return {}
    right = sum(cell.count for cell in cells if cell.answer == cell.label)
    found = {"accuracy": Measure(right / total, total)}
    if binary:
        positive = sum(cell.count for cell in cells if cell.label == 1)
        claimed = sum(cell.count for cell in cells if cell.answer == 1)
        both = sum(cell.count for cell in cells if cell.label == 1 and cell.answer == 1)
        if positive:
            found["recall"] = Measure(both / positive, positive)
        if claimed:
            found["precision"] = Measure(both / claimed, claimed)
    return found


def classification(cells: Iterable[Cell]) -> dict[str, float]:
    """Accuracy, and where the labels are 0 and 1, recall and precision of 1. Nothing where nothing came."""
    counted = list(cells)
    return {name: share.value for name, share in shares(counted, binary=is_binary(counted)).items()}


def regression(cells: Iterable[Cell]) -> dict[str, float]:
    """Mean squared and mean absolute error. Nothing where nothing came."""
    counted = [cell for cell in cells if math.isfinite(cell.answer)]
    total = sum(cell.count for cell in counted)
    if not total:
        return {}
    errors = [(abs(cell.answer - cell.label), cell.count) for cell in counted]
    return {
        # Multiplied: what is too large for a float is infinite then, where a power of it raises.
        "mse": sum(count * error * error for error, count in errors) / total,
        "mae": sum(count * error for error, count in errors) / total,
    }


def metrics(cells: Sequence[Cell], *, classes: bool) -> dict[str, float]:
    """The metrics of a kind of model."""
    return classification(cells) if classes else regression(cells)


def measures(cells: Sequence[Cell], *, classes: bool, binary: bool) -> dict[str, Measure]:
    """Those metrics of which is known how sure they are."""
    if classes:
        return shares(cells, binary=binary)
    counted = [cell for cell in cells if math.isfinite(cell.answer)]
    total = sum(cell.count for cell in counted)
    errors = regression(counted)
    if total < 2 or not all(map(math.isfinite, errors.values())):
        return {}
    mean = errors["mae"]
    squares = sum(cell.count * (abs(cell.answer - cell.label) - mean) ** 2 for cell in counted)
    return {"mae": Measure(mean, total, squares / (total - 1))}


def label_fault(deployment: str, prediction_id: str, label: float | str | None) -> tuple[str, str] | None:
    """What is wrong with a true label, however it came: the field, and a sentence; None where nothing is."""
    for field, text in (("deployment", deployment), ("prediction_id", prediction_id)):
        if not text or "\0" in text or len(text.encode()) > MAX_ID_BYTES:
            return field, f"must be a text of 1 to {MAX_ID_BYTES} bytes without U+0000"
    if label is None:
        return "label", "must be a number or a text"
    if isinstance(label, str):
        return ("text", "must have no character U+0000") if "\0" in label else None
    return None if math.isfinite(label) else ("number", "must be finite")
