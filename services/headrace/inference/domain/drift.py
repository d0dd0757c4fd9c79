"""Whether what a model is asked, and answers, is still what it was trained on.

A window of requests is compared, column by column, with the profile of the dataset version that the model was
trained on. Each column is asked two questions, and drifts when both are answered yes:

- Is it more than chance? A two-sample test: Kolmogorov and Smirnov's for numbers, chi-square for values that
  are few, for classes that were answered, and for how many values are missing. The p-values of a window are
  adjusted by Holm, so that a window in which nothing drifts is called drifting by any column with a
  probability of at most 1 - confidence, however the columns depend on each other.
- Is it much? The population stability index, which does not shrink to nothing as windows grow.

Numbers are compared in float32, in which models take them.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from headrace.errors import FieldViolation, InvalidArgument
from headrace.inference.domain.chance import chi_square_tail, holm, kolmogorov_tail

Floats = npt.NDArray[np.float32]
Value = float | str
Side = Literal["left", "right"]

PREDICTION: Final = "prediction"
"""The name of what the model answers, beside its columns."""
FEWEST: Final = 50
"""Of fewer rows, on either side, nothing is said."""
# An empty bin's share: the index has no value for 0. As ingestion has it.
_LEAST_SHARE: Final = 1e-4
_TENTHS: Final = tuple(tenth / 10 for tenth in range(1, 10))
# Below it chi-square's distribution is no good approximation (Cochran, 1954).
_LEAST_EXPECTED: Final = 5.0


class Comparison(enum.StrEnum):
    """How a column is compared."""

    KOLMOGOROV_SMIRNOV = "KOLMOGOROV_SMIRNOV"
    CHI_SQUARE = "CHI_SQUARE"
    # Chi-square of rows with a value and without.
    MISSING = "MISSING"


@dataclass(frozen=True, slots=True)
class DriftRules:
    """How a deployment is watched.

    A window is of at least `requests` requests, of which the newest are judged, and ends at most once in
    `every`. After `windows` in a row that drift, an alert is raised; it is over after as many that do not.
    A column drifts whose stability index is at least `min_psi`, for certain with `confidence`.
    """

    requests: int = 500
    every: timedelta = timedelta(minutes=1)
    windows: int = 2
    min_psi: float = 0.2
    confidence: float = 0.99

    def __post_init__(self) -> None:
        """Raises InvalidArgument/INVALID_DRIFT."""
        problems = list(self._problems())
        if problems:
            raise InvalidArgument(
                "INVALID_DRIFT",
                "; ".join(f"{problem.field} {problem.description}" for problem in problems),
                fields=problems,
            )

    def _problems(self) -> Iterator[FieldViolation]:
        if not FEWEST <= self.requests <= 100_000:
            yield FieldViolation("drift.requests", f"is from {FEWEST} to 100,000, not {self.requests}")
        if not timedelta(0) <= self.every <= timedelta(days=30):
            yield FieldViolation("drift.every", "is from 0 to 30 days")
        if not 1 <= self.windows <= 100:
            yield FieldViolation("drift.windows", f"is from 1 to 100, not {self.windows}")
        if not 0 < self.min_psi <= 10:
            yield FieldViolation("drift.min_psi", f"is above 0 and at most 10, not {self.min_psi:g}")
        if not 0.5 <= self.confidence < 1:
            yield FieldViolation(
                "drift.confidence", f"is a probability from 0.5 to below 1, not {self.confidence:g}"
            )


DEFAULT_RULES: Final = DriftRules()


@dataclass(frozen=True, slots=True)
class Numbers:
    """A number's distribution: `count` values, and the value at each of the rising `ranks`.

    A rank is right within `rank_error`.
    """

    count: int
    min: float
    max: float
    ranks: tuple[float, ...]
    values: tuple[float, ...]
    rank_error: float = 0.0


@dataclass(frozen=True, slots=True)
class Values:
    """How often each of the most frequent values occurred among `count`."""

    count: int
    counts: Mapping[Value, int]


@dataclass(frozen=True, slots=True)
class Column:
    """What a column was in training; `of` is None where nothing is known of its values."""

    of: Numbers | Values | None
    missing: int = 0


@dataclass(frozen=True, slots=True)
class Reference:
    """The profile of a dataset version, by column, and of its label as the model answers it."""

    columns: Mapping[str, Column]
    answers: Values | None = None


@dataclass(frozen=True, slots=True)
class Window:
    """What was asked and answered. Missing numbers are NaN and missing texts empty."""

    rows: int = 0
    numbers: Mapping[str, Floats] = field(default_factory=dict)
    texts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    answers: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One column's comparison. `p_value` is adjusted for all that was compared in the window."""

    column: str
    test: Comparison
    statistic: float
    p_value: float
    psi: float
    drifts: bool = False


def judge(rules: DriftRules, reference: Reference, window: Window) -> tuple[Finding, ...]:
    """Compare a window with the profile: the columns in their order, and what was answered last.

    Left out is what the profile does not know, and what has fewer than `FEWEST` values on either side.
    """
    found = list(_comparisons(reference, window))
    adjusted = holm([finding.p_value for finding in found])
    return tuple(
        replace(
            finding,
            p_value=p_value,
            drifts=p_value <= 1 - rules.confidence and finding.psi >= rules.min_psi,
        )
        for finding, p_value in zip(found, adjusted, strict=True)
    )


def _comparisons(reference: Reference, window: Window) -> Iterator[Finding]:
    for name, numbers in window.numbers.items():
        if (column := reference.columns.get(name)) is not None:
            present = numbers[~np.isnan(numbers)]
            yield from _compared(name, column, len(numbers) - len(present), present)
    for name, texts in window.texts.items():
        if (column := reference.columns.get(name)) is not None:
            given = [text for text in texts if text]
            yield from _compared(name, column, len(texts) - len(given), given)
    if reference.answers is not None:
        yield from _chi_square(PREDICTION, reference.answers, window.answers)


def _compared(name: str, column: Column, missing: int, present: Floats | Sequence[str]) -> Iterator[Finding]:
    match column.of:
        case Numbers() if isinstance(present, np.ndarray):
            yield from kolmogorov_smirnov(name, column.of, present)
        case Values():
            yield from _chi_square(name, column.of, [_plain(value) for value in present])
    if column.of is not None and (missing or column.missing):
        yield from _two_samples(
            name, Comparison.MISSING, [column.of.count, column.missing], [len(present), missing]
        )


def _plain(value: Value) -> Value:
    return value if isinstance(value, str) else float(value)


def kolmogorov_smirnov(name: str, reference: Numbers, sample: Floats) -> Iterator[Finding]:
    """Compare numbers. The distance is the least that the profile allows for, so that p is never too small.

    Of the reference's distribution the quantiles are known: between two of them its value lies between
    their ranks, give or take the rank error, and only what is outside of that is a distance.
    """
    if reference.count < FEWEST or len(sample) < FEWEST:
        return
    table = _Table(reference)
    ordered = np.sort(sample)
    # Where the distance is the largest: at a value of the sample or of the reference, or just below it.
    points = np.unique(np.concatenate([ordered, table.values]))
    distance = 0.0
    sides: tuple[Side, ...] = ("right", "left")
    for side in sides:
        seen = np.searchsorted(ordered, points, side=side) / len(ordered)
        low, high = table.between(points, side)
        beyond = np.maximum(low - reference.rank_error - seen, seen - high - reference.rank_error)
        distance = max(distance, float(beyond.max(initial=0.0)))
    size = reference.count * len(sample) / (reference.count + len(sample))
    edges = table.edges()
    expected = np.diff(table.up_to(edges), prepend=0.0, append=1.0)
    actual = np.diff(np.searchsorted(ordered, edges, side="right") / len(ordered), prepend=0.0, append=1.0)
    tail, psi = kolmogorov_tail(distance, size), _index(expected, actual)
    yield Finding(name, Comparison.KOLMOGOROV_SMIRNOV, distance, tail, psi)


class _Table:
    """A reference's quantiles, its ends among them."""

    def __init__(self, reference: Numbers) -> None:
        # What is too large for float32 is infinite there, in a request too.
        with np.errstate(over="ignore"):
            self.values = np.array([reference.min, *reference.values, reference.max]).astype(np.float32)
        self._ranks = np.array([0.0, *reference.ranks, 1.0])

    def up_to(self, points: Floats) -> npt.NDArray[np.float64]:
        """The share of the values that are not above each point, at least."""
        return self._before(np.searchsorted(self.values, points, side="right"))

    def between(self, points: Floats, side: Side) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Bounds of the share of values up to each point (right), or below it (left)."""
        place = np.searchsorted(self.values, points, side=side)
        return self._before(place), self._ranks[np.minimum(place, len(self._ranks) - 1)]

    def edges(self) -> Floats:
        """Those of ten bins of equal shares, in which a number that fills several is a bin of its own."""
        tenths = [self.values[int(np.searchsorted(self._ranks, tenth - 1e-9))] for tenth in _TENTHS]
        many = [number for number, count in Counter(tenths).items() if count > 1]
        below = [np.nextafter(number, np.float32(-math.inf)) for number in many]
        return np.unique(np.array([*tenths, *below], np.float32))

    def _before(self, place: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        return np.where(place > 0, self._ranks[place - 1], 0.0)


def _chi_square(name: str, reference: Values, sample: Sequence[Value]) -> Iterator[Finding]:
    """Compare values: those of the reference, and all others as one."""
    seen = Counter(sample)
    known = list(reference.counts)
    old = [reference.counts[value] for value in known]
    new = [seen[value] for value in known]
    yield from _two_samples(
        name,
        Comparison.CHI_SQUARE,
        [*old, max(0, reference.count - sum(old))],
        [*new, len(sample) - sum(new)],
    )


def _two_samples(name: str, test: Comparison, old: Sequence[int], new: Sequence[int]) -> Iterator[Finding]:
    """Pearson's chi-square of two samples' counts; what is rare is counted together."""
    counts = np.array([old, new], np.float64)
    totals = counts.sum(axis=1)
    if totals.min() < FEWEST:
        return
    psi = _index(counts[0] / totals[0], counts[1] / totals[1])
    expected = counts.sum(axis=0) * totals.min() / totals.sum()
    rare = expected < _LEAST_EXPECTED
    pooled = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    # Nor is anything to be learnt where neither has any.
    pooled = pooled[:, pooled.sum(axis=0) > 0]
    wanted = np.outer(totals, pooled.sum(axis=0)) / totals.sum()
    statistic = float((np.square(pooled - wanted) / wanted).sum())
    yield Finding(name, test, statistic, chi_square_tail(statistic, pooled.shape[1] - 1), psi)


def _index(expected: npt.NDArray[np.float64], actual: npt.NDArray[np.float64]) -> float:
    """The population stability index: the sum of (p - q) ln(p / q) over bins."""
    p, q = np.maximum(actual, _LEAST_SHARE), np.maximum(expected, _LEAST_SHARE)
    return float(((p - q) * np.log(p / q)).sum())
