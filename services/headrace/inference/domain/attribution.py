"""Shares of an answer: how much of it each feature has moved, compared with a baseline.

Shapley sampling asks the model for answers only; integrated gradients ask for gradients, too, where the model
has them. What they promise, for any model f, row x and baseline b:

- *completeness*: the amounts add up to f(x) - f(b); Shapley sampling does so exactly, integrated gradients up
  to what its steps have not resolved;
- *dummy*: a feature that has the baseline's value, or that the model does not look at, has nothing;
- *symmetry*: features that the model cannot tell apart have the same, in the limit of many samples;
- *linearity*: of a linear model each feature has exactly its weight times its distance from the baseline.

Shapley values: Castro, Gómez and Tejada, "Polynomial calculation of the Shapley value based on sampling"
(2009); the reverse of each order as its antithetic partner: Mitchell et al., "Sampling permutations for
Shapley value estimation" (2022). Integrated gradients: Sundararajan, Taly and Yan, "Axiomatic attribution for
deep networks" (2017).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]
Texts: TypeAlias = NDArray[np.object_]
Answer: TypeAlias = Callable[[Numbers, Texts], Numbers]
"""Of numbers [rows, columns] and texts [rows, columns] the answers [rows]."""
Gradient: TypeAlias = Callable[[Numbers], Numbers]
"""Of numbers [rows, columns] each answer's derivatives by them, [rows, columns]; raises NoGradients."""
_Scalar = TypeVar("_Scalar", bound=np.generic)
Stop: TypeAlias = Literal["CONVERGED", "EVALUATIONS", "DEADLINE"]

TOLERANCE: Final = 0.01
"""Errors are small enough at this share of the sum of the amounts without their signs."""
# An answer moves by less where rounding alone moves it.
_NOTHING: Final = 1e-9
# What is asked in one call, between two looks at the clock: four MiB of FP32, and not too many rows.
_BATCH_VALUES: Final = 1 << 20
_BATCH_ROWS: Final = 128
# Standard errors of fewer pairs are no basis to stop.
_LEAST_PAIRS: Final = 8
# With gradients each row takes more memory: what was computed on the way is kept for the way back.
_GRADIENT_ROWS: Final = 32
GRADIENT_COST: Final = 3
"""Evaluations that a row with its gradient counts as: the way back takes as long as about two ways forth."""
_TWO: Final = 2
_FIRST_STEPS: Final = 8
# Gradients that have settled on this many steps while their sum does not close are not the answer's.
_BELIEVED_STEPS: Final = 128


class OutOfTime(Exception):  # noqa: N818 - what it is
    """Not enough was found in time to say anything."""


class NoGradients(Exception):  # noqa: N818
    """The model does not say how its answer moves, or what it says is not so."""


class TooFewEvaluations(Exception):  # noqa: N818
    """The method needs at least `needed`."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"at least {needed} evaluations are needed")
        self.needed: Final = needed


@dataclass(frozen=True, slots=True)
class Comparison:
    """A row and what it is compared with; `of_number` and `of_text`: each column's feature."""

    numbers: Numbers
    texts: Texts
    baseline_numbers: Numbers
    baseline_texts: Texts
    of_number: NDArray[np.int32]
    of_text: NDArray[np.int32]
    features: int

    def changed(self) -> NDArray[np.intp]:
        """Features that have not the baseline's value."""
        same = (self.numbers == self.baseline_numbers) | (
            np.isnan(self.numbers) & np.isnan(self.baseline_numbers)
        )
        columns = [self.of_number[~same], self.of_text[self.texts != self.baseline_texts]]
        return np.unique(np.concatenate(columns)).astype(np.intp)

    def has_line(self) -> bool:
        """Whether there is a straight line from the baseline: all that changes are numbers, none missing."""
        moved = np.isin(self.of_number, self.changed())
        ends = np.concatenate([self.numbers[moved], self.baseline_numbers[moved]])
        return bool(np.isfinite(ends).all() and (self.texts == self.baseline_texts).all())

    @property
    def batch(self) -> int:
        """How many rows are asked in one call."""
        width = max(1, len(self.of_number) + len(self.of_text))
        return max(1, min(_BATCH_ROWS, _BATCH_VALUES // width))


@dataclass(frozen=True, slots=True)
class Attributions:
    """Amounts and their errors, [features]; `samples`: orders of the features, or steps."""

    answer: float
    baseline_answer: float
    amounts: Numbers
    errors: Numbers
    evaluations: int
    samples: int
    stop: Stop

    @property
    def gap(self) -> float:
        """What the amounts' sum is more than the answer's distance from the baseline's."""
        return float(self.amounts.sum()) - (self.answer - self.baseline_answer)


class _Asked:
    """A model that is asked as often as it may, and in time."""

    def __init__(self, row: Comparison, answer: Answer, evaluations: int, late: Callable[[], bool]) -> None:
        self._row = row
        self._answer = answer
        self._late = late
        self._left = evaluations
        self.count = 0

    def require(self, evaluations: int) -> None:
        """Raise TooFewEvaluations where fewer are left."""
        if not self.allows(evaluations):
            raise TooFewEvaluations(self.count + evaluations)

    def allows(self, evaluations: int) -> bool:
        return evaluations <= self._left

    def pairs_left(self, cost: int) -> int:
        return self._left // cost

    def points(self, numbers: Numbers, texts: Texts) -> Numbers:
        """Answers to rows. Raises OutOfTime."""
        if self._late():
            raise OutOfTime
        self.count += len(numbers)
        self._left -= len(numbers)
        return self._answer(numbers, texts)

    def gradients(self, numbers: Numbers, gradient: Gradient) -> Numbers:
        """Gradients at rows. Raises OutOfTime, NoGradients."""
        if self._late():
            raise OutOfTime
        self.count += GRADIENT_COST * len(numbers)
        self._left -= GRADIENT_COST * len(numbers)
        return gradient(numbers)

    def masked(self, mask: NDArray[np.bool_]) -> Numbers:
        """Answers where features have the row's value, else the baseline's: [rows, features] to [rows]."""
        row = self._row
        answers = [
            self.points(
                np.where(part[:, row.of_number], row.numbers, row.baseline_numbers),
                np.where(part[:, row.of_text], row.texts, row.baseline_texts),
            )
            for part in _parts(mask, row.batch)
        ]
        return np.concatenate([np.empty(0), *answers])

    def ends(self) -> tuple[float, float]:
        """The answers to the row and to the baseline."""
        answer, baseline = self.masked(np.array([[True], [False]]).repeat(self._row.features, axis=1))
        return float(answer), float(baseline)


def shapley_sampling(
    row: Comparison,
    answer: Answer,
    *,
    evaluations: int,
    late: Callable[[], bool],
    random: np.random.Generator,
) -> Attributions:
    """Sample orders in pairs, an order and its reverse, until the standard errors are small enough.

    Raises TooFewEvaluations, OutOfTime where not even two pairs were asked.
    """
    asked = _Asked(row, answer, evaluations, late)
    changed = row.changed()
    cost = 2 * max(0, len(changed) - 1)
    asked.require(2 + 2 * cost)
    ends = asked.ends()
    contributions = np.empty((0, len(changed)))
    at_once = max(1, row.batch // max(1, cost))
    if len(changed) <= _TWO:
        # An order and its reverse are all that there are.
        contributions = _pairs(row, asked, changed, ends, random, 1)
        return _attributions(row, asked, changed, ends, contributions[0], np.zeros(len(changed)), _TWO)
    stop: Stop = "EVALUATIONS"
    while stop == "EVALUATIONS" and asked.allows(cost):
        pairs = min(at_once, asked.pairs_left(cost), max(_LEAST_PAIRS, len(contributions)))
        try:
            more = _pairs(row, asked, changed, ends, random, pairs)
        except OutOfTime:
            if len(contributions) < _TWO:
                raise
            stop = "DEADLINE"
        else:
            contributions = np.concatenate([contributions, more])
            errors = _standard_errors(contributions)
            if len(contributions) >= _LEAST_PAIRS and _small(errors, contributions.mean(axis=0)):
                stop = "CONVERGED"
    amounts, errors = contributions.mean(axis=0), _standard_errors(contributions)
    return _attributions(row, asked, changed, ends, amounts, errors, 2 * len(contributions), stop)


def integrated_gradients(
    row: Comparison, answer: Answer, gradient: Gradient, *, evaluations: int, late: Callable[[], bool]
) -> Attributions:
    """Follow the line from the baseline, in twice as many steps until the amounts stay as they are.

    What a feature has of a step is the derivative in the step's middle times the feature's part of the step.
    Where there are no gradients, or amounts settle on a sum that is not the answer's distance, the gradients
    are not the answer's (a program may have cut off parts of them), and differences take their place.

    The row must have a line, and the model must be continuous on it. Raises TooFewEvaluations, OutOfTime
    where it was not refined once.
    """
    asked = _Asked(row, answer, evaluations, late)
    changed = row.changed()

    def along(steps: int) -> Numbers:
        return _gradients_along(row, asked, changed, gradient, steps)

    cost = GRADIENT_COST * min(1, len(changed))
    asked.require(2 + cost * (_FIRST_STEPS + 2 * _FIRST_STEPS))
    ends = asked.ends()
    try:
        return _refined(row, asked, changed, ends, along, cost, _BELIEVED_STEPS)
    except NoGradients:
        return _by_differences(row, asked, changed, ends)


def integrated_differences(
    row: Comparison, answer: Answer, *, evaluations: int, late: Callable[[], bool]
) -> Attributions:
    """Integrate the gradients of a model that only answers, along the same line in the same way.

    What a feature has of a step is the answer's difference between the step's ends in that feature alone, the
    others in the middle: the gradient's integral by the midpoint rule, each derivative by the central
    difference over the whole step. For a smooth model the error falls with the square of the steps. No
    step is so small that it measures the rounding of FP32, and no point lies beyond row and baseline.

    The row must have a line, and the model must be continuous on it. Raises TooFewEvaluations, OutOfTime
    where it was not refined once.
    """
    asked = _Asked(row, answer, evaluations, late)
    changed = row.changed()
    asked.require(2 + 2 * len(changed) * (_FIRST_STEPS + 2 * _FIRST_STEPS))
    return _by_differences(row, asked, changed, asked.ends())


def _by_differences(
    row: Comparison, asked: _Asked, changed: NDArray[np.intp], ends: tuple[float, float]
) -> Attributions:
    def along(steps: int) -> Numbers:
        return _differences_along(row, asked, changed, steps)

    return _refined(row, asked, changed, ends, along, 2 * len(changed), math.inf)


def _refined(
    row: Comparison,
    asked: _Asked,
    changed: NDArray[np.intp],
    ends: tuple[float, float],
    along: Callable[[int], Numbers],
    cost: int,
    believed: float,
) -> Attributions:
    """Amounts by `along` so many steps, each of which costs `cost` evaluations.

    Amounts that have settled and do not add up are not answered below `believed` steps, where that is a
    number, and from there on raise NoGradients.
    """
    asked.require(cost * (_FIRST_STEPS + 2 * _FIRST_STEPS))
    steps, coarse = 2 * _FIRST_STEPS, along(_FIRST_STEPS)
    amounts = along(steps)
    while True:
        errors = np.abs(amounts - coarse)
        gap = abs(float(amounts.sum()) - (ends[0] - ends[1]))
        if _small(np.append(errors, gap), amounts):
            return _attributions(row, asked, changed, ends, amounts, errors, steps)
        doubtful = math.isfinite(believed) and _small(errors, amounts)
        more = asked.allows(cost * 2 * steps)
        if doubtful and (steps >= believed or not more):
            raise NoGradients
        if not more:
            return _attributions(row, asked, changed, ends, amounts, errors, steps, "EVALUATIONS")
        try:
            finer = along(2 * steps)
        except OutOfTime:
            if doubtful:
                raise
            return _attributions(row, asked, changed, ends, amounts, errors, steps, "DEADLINE")
        steps, coarse, amounts = 2 * steps, amounts, finer


def _pairs(
    row: Comparison,
    asked: _Asked,
    changed: NDArray[np.intp],
    ends: tuple[float, float],
    random: np.random.Generator,
    pairs: int,
) -> Numbers:
    """What each changed feature adds, the mean over an order and its reverse: [pairs, changed features]."""
    count = len(changed)
    orders = np.array([random.permutation(count) for _ in range(pairs)])
    orders = np.stack([orders, orders[:, ::-1]], axis=1).reshape(2 * pairs, count)
    # Of an order's points between the baseline and the row, point k has its first k + 1 features.
    places = np.argsort(orders, axis=1)
    between = max(0, count - 1)
    has = places[:, None, :] <= np.arange(between)[None, :, None]
    mask = np.zeros((2 * pairs * between, row.features), bool)
    mask[:, changed] = has.reshape(len(mask), count)
    first, last = (np.full((2 * pairs, 1), end) for end in (ends[1], ends[0]))
    answers = np.concatenate([first, asked.masked(mask).reshape(2 * pairs, between), last], axis=1)
    added = np.take_along_axis(np.diff(answers, axis=1), places, axis=1)
    return np.asarray(added.reshape(pairs, 2, count).mean(axis=1))


def _gradients_along(
    row: Comparison, asked: _Asked, changed: NDArray[np.intp], gradient: Gradient, steps: int
) -> Numbers:
    """What each changed feature has of the line: [changed features]. Raises NoGradients."""
    if not len(changed):
        return np.zeros(0)
    moved, distance = _distance(row, changed)
    middles = ((np.arange(steps) + 0.5) / steps)[:, None]
    total = np.zeros(int(moved.sum()))
    for part in _parts(middles, min(row.batch, _GRADIENT_ROWS)):
        total += asked.gradients(row.baseline_numbers + distance * part, gradient)[:, moved].sum(axis=0)
    if not np.isfinite(total).all():
        raise NoGradients
    of_column = total * distance[moved] / steps
    of_feature = np.zeros(row.features)
    np.add.at(of_feature, row.of_number[moved], of_column)
    return of_feature[changed]


def _differences_along(row: Comparison, asked: _Asked, changed: NDArray[np.intp], steps: int) -> Numbers:
    """What each changed feature has of the line: [changed features]."""
    _, distance = _distance(row, changed)
    middles = (np.arange(steps) + 0.5) / steps
    grid = np.meshgrid(middles, changed, (-0.5 / steps, 0.5 / steps), indexing="ij")
    points = np.stack(grid, axis=-1).reshape(2 * steps * len(changed), 3)
    answers = [np.empty(0)]
    for part in _parts(points, row.batch):
        middle, feature, half = part[:, :1], part[:, 1:2], part[:, 2:]
        shares = middle + half * (feature == row.of_number)
        texts = np.broadcast_to(row.texts, (len(part), len(row.texts)))
        answers.append(asked.points(row.baseline_numbers + distance * shares, texts))
    ends = np.concatenate(answers).reshape(steps, len(changed), 2)
    return np.asarray((ends[:, :, 1] - ends[:, :, 0]).sum(axis=0))


def _distance(row: Comparison, changed: NDArray[np.intp]) -> tuple[NDArray[np.bool_], Numbers]:
    """Which columns are of features that changed, and how far each is from the baseline's: [columns]."""
    moved = np.isin(row.of_number, changed)
    # Where neither has a value there is no distance.
    distance = np.zeros(len(moved))
    distance[moved] = row.numbers[moved] - row.baseline_numbers[moved]
    return moved, distance


def _parts(rows: NDArray[_Scalar], size: int) -> Iterator[NDArray[_Scalar]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))


def _standard_errors(contributions: Numbers) -> Numbers:
    """Of the means of at least two; of one there is no telling."""
    if len(contributions) < _TWO:
        return np.full(contributions.shape[1], np.inf)
    return np.asarray(contributions.std(axis=0, ddof=1) / np.sqrt(len(contributions)))


def _small(errors: Numbers, amounts: Numbers) -> bool:
    return bool(errors.max(initial=0.0) <= max(TOLERANCE * np.abs(amounts).sum(), _NOTHING))


def _attributions(
    row: Comparison,
    asked: _Asked,
    changed: NDArray[np.intp],
    ends: tuple[float, float],
    amounts: Numbers,
    errors: Numbers,
    samples: int,
    stop: Stop = "CONVERGED",
) -> Attributions:
    """Those of all features; one that has not changed has nothing."""
    of_all = np.zeros((2, row.features))
    of_all[:, changed] = amounts, errors
    return Attributions(*ends, of_all[0], of_all[1], asked.count, samples, stop)
