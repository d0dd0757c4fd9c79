"""What a step of a rollout is judged by: the new version against the old one while both answer.

Whoever reads a `Judgement` sees for each criterion what was measured of both versions, by how much they
differ, the interval in which the true difference lies with the plan's confidence, and how much was allowed.

A criterion is VIOLATED when the whole interval is beyond what is allowed. The intervals hold at every moment
at once (`sequential`), and the plan's confidence is shared out over its criteria and steps: a version that is
as good as allowed is sent back by any of them, ever, with a probability of at most 1 - confidence.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from headrace.errors import FieldViolation, InvalidArgument
from headrace.inference.domain import sequential
from headrace.inference.domain.quality import Cell
from headrace.inference.domain.sequential import Histogram, Tally

# Latencies are counted in buckets that are 2^(1/8), nine per cent, wide.
BUCKETS_PER_DOUBLING: Final = 8


class Criterion(enum.StrEnum):
    """What is compared."""

    ERROR_RATE = "ERROR_RATE"
    LATENCY_P50 = "LATENCY_P50"
    LATENCY_P99 = "LATENCY_P99"
    DRIFT = "DRIFT"
    QUALITY = "QUALITY"
    DISAGREEMENT = "DISAGREEMENT"


class Standing(enum.StrEnum):
    """How a version stands on a criterion."""

    # Too few samples to say anything.
    INSUFFICIENT = "INSUFFICIENT"
    WITHIN = "WITHIN"
    # Beyond what is allowed as far as seen, which may be chance.
    SUSPECT = "SUSPECT"
    VIOLATED = "VIOLATED"
    # The model's answers do not have what the plan wants looked at.
    NOT_APPLICABLE = "NOT_APPLICABLE"


class Verdict(enum.StrEnum):
    """What follows for the step."""

    HOLD = "HOLD"
    ADVANCE = "ADVANCE"
    ROLL_BACK = "ROLL_BACK"


class QualityMetric(enum.StrEnum):
    """A share that feedback tells; recall and precision are those of class 1 of two."""

    ACCURACY = "ACCURACY"
    RECALL = "RECALL"
    PRECISION = "PRECISION"


@dataclass(frozen=True, slots=True)
class QualityBound:
    """How much of a metric the new version may lose, as a share: 0.02 of 0.95 leaves 0.93."""

    metric: QualityMetric
    max_drop: float


@dataclass(frozen=True, slots=True)
class DisagreementBound:
    """How large a share of mirrored requests a shadow may answer otherwise than the old version.

    Numbers agree that differ by no more than `tolerance` of the old version's; classes agree that are equal.
    """

    max_share: float
    tolerance: float = 0.0


@dataclass(frozen=True, slots=True)
class Analysis:
    """How much worse the new version may be; None: not looked at.

    `max_error_increase` and `max_shift` are shares (0.01: one request of a hundred), the latter of any class
    among the answers; the ratios are the new latency over the old. A step that is not decided when its hold
    is over is held for up to `longest_hold`.
    """

    max_error_increase: float = 0.05
    max_p50_ratio: float | None = None
    max_p99_ratio: float | None = None
    max_shift: float | None = None
    quality: QualityBound | None = None
    disagreement: DisagreementBound | None = None
    min_samples: int = 50
    confidence: float = 0.99
    longest_hold: timedelta = timedelta(0)

    def __post_init__(self) -> None:
        """Raises InvalidArgument/INVALID_ROLLOUT for what no version could be judged by."""
        problems = list(self._problems())
        if problems:
            raise InvalidArgument(
                "INVALID_ROLLOUT",
                "; ".join(f"{problem.field} {problem.description}" for problem in problems),
                fields=problems,
            )

    def _problems(self) -> Iterator[FieldViolation]:
        place = "rollout.analysis"
        for name, share in (
            ("error_rate.max_increase", self.max_error_increase),
            ("drift.max_shift", self.max_shift),
            ("quality.max_drop", self.quality.max_drop if self.quality else None),
            ("disagreement.max_share", self.disagreement.max_share if self.disagreement else None),
            ("disagreement.tolerance", self.disagreement.tolerance if self.disagreement else None),
        ):
            if share is not None and not 0 <= share < 1:
                yield FieldViolation(f"{place}.{name}", f"is a share from 0 to below 1, not {share:g}")
        for name, ratio in (("latency_p50", self.max_p50_ratio), ("latency_p99", self.max_p99_ratio)):
            if ratio is not None and not 1 <= ratio <= 1000:
                yield FieldViolation(f"{place}.{name}.max_ratio", f"is from 1 to 1000, not {ratio:g}")
        if self.min_samples < 1:
            yield FieldViolation(f"{place}.min_samples", f"is at least 1, not {self.min_samples}")
        if not 0.5 <= self.confidence < 1:
            yield FieldViolation(
                f"{place}.confidence", f"is a probability from 0.5 to below 1, not {self.confidence:g}"
            )
        if self.longest_hold < timedelta(0):
            yield FieldViolation(f"{place}.longest_hold", "must not be negative")

    @property
    def needs_log(self) -> bool:
        """Whether anything but counts of failures is looked at."""
        wishes = (self.max_p50_ratio, self.max_p99_ratio, self.max_shift, self.quality, self.disagreement)
        return any(wish is not None for wish in wishes)


DEFAULT_ANALYSIS: Final = Analysis()


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Answers of one version since a step began."""

    succeeded: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All answers."""
        return self.succeeded + self.failed


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen of one version since a step began.

    `latencies` are counts by bucket: 8 log2(seconds), rounded up. `answers` are counts by answer, of requests
    for one row. `feedback` is in the model's own terms. `classes`: how many its model knows; 0 where it
    answers with numbers. `differing`: of a shadow's answers, those that the old version's are unlike; None of
    what is no shadow.
    """

    outcomes: Outcomes = Outcomes()
    latencies: Mapping[int, int] = field(default_factory=dict)
    answers: Mapping[float, int] = field(default_factory=dict)
    feedback: tuple[Cell, ...] = ()
    classes: int = 0
    differing: Tally | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One criterion's numbers.

    `new` and `old` are error rates, seconds, shares of the answers (of the class that changed most), errors
    among labelled answers (1 - metric), or the share of answers that differ and 0. `effect` is their
    difference, of latencies their ratio; the true one lies from `low` to `high`. None: nothing bounds it yet.
    """

    criterion: Criterion
    standing: Standing
    new: float
    old: float
    effect: float
    low: float | None
    high: float | None
    limit: float
    new_samples: int
    old_samples: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """A step's verdict, and why."""

    verdict: Verdict
    findings: tuple[Finding, ...]
    time: datetime

    @property
    def worst(self) -> Finding | None:
        """The finding that speaks against the new version most; None where none does."""
        bad = [f for f in self.findings if f.standing in (Standing.VIOLATED, Standing.SUSPECT)]
        return max(bad, key=lambda finding: finding.standing is Standing.VIOLATED, default=None)


def judge(
    analysis: Analysis,
    steps: int,
    new: Observed,
    old: Observed,
    *,
    held: timedelta,
    hold: timedelta,
    now: datetime,
) -> Judgement:
    """Judge one of so many steps that has been held for that long.

    ROLL_BACK as soon as a criterion is violated. ADVANCE when the hold is over and every criterion is within
    its limit as measured, on enough samples. HOLD otherwise, but not for ever: when the longest hold is over,
    a version that still looks worse than allowed goes back, and one that too few asked to say goes on.
    """
    findings = _findings(analysis, steps, new, old)
    standings = {finding.standing for finding in findings} - {Standing.NOT_APPLICABLE}
    if Standing.VIOLATED in standings:
        verdict = Verdict.ROLL_BACK
    elif held < hold:
        verdict = Verdict.HOLD
    elif standings <= {Standing.WITHIN}:
        verdict = Verdict.ADVANCE
    elif held < max(hold, analysis.longest_hold):
        verdict = Verdict.HOLD
    else:
        verdict = Verdict.ROLL_BACK if Standing.SUSPECT in standings else Verdict.ADVANCE
    return Judgement(verdict, findings, now)


def same_findings(one: Judgement | None, other: Judgement | None) -> bool:
    """Whether two judgements differ in nothing but their time."""
    if one is None or other is None:
        return one is other
    return (one.verdict, one.findings) == (other.verdict, other.findings)


def same_standings(one: Judgement | None, other: Judgement | None) -> bool:
    """Whether two judgements say the same, be it with other numbers."""
    return _standings(one) == _standings(other)


def _standings(judgement: Judgement | None) -> object:
    return judgement and (judgement.verdict, [(f.criterion, f.standing) for f in judgement.findings])


def against(finding: Finding, new: int, old: int) -> str:
    """What a finding says against the new version, for people."""
    if finding.criterion is Criterion.ERROR_RATE:
        failed = round(finding.new * finding.new_samples), round(finding.old * finding.old_samples)
        return (
            f"version {new} failed {failed[0]} of {finding.new_samples} requests, "
            f"version {old} {failed[1]} of {finding.old_samples}; {finding.limit:.1%} more are allowed"
        )
    if finding.criterion in (Criterion.LATENCY_P50, Criterion.LATENCY_P99):
        return (
            f"version {new} takes {1000 * finding.new:.3g} ms, version {old} {1000 * finding.old:.3g} ms "
            f"({finding.criterion}): {finding.effect:.3g} times as long, {finding.limit:g} times is allowed"
        )
    if finding.criterion is Criterion.DRIFT:
        return (
            f"version {new} gives an answer in {finding.new:.1%} of its answers, "
            f"version {old} in {finding.old:.1%}; a change of {finding.limit:.1%} is allowed"
        )
    if finding.criterion is Criterion.DISAGREEMENT:
        return (
            f"version {new} answered {finding.new:.1%} of {finding.new_samples} requests otherwise than "
            f"version {old}; {finding.limit:.1%} are allowed"
        )
    return (
        f"version {new} was wrong in {finding.new:.1%} of {finding.new_samples} labelled answers, "
        f"version {old} in {finding.old:.1%} of {finding.old_samples}; {finding.limit:.1%} more are allowed"
    )


def log_threshold(analysis: Analysis, steps: int) -> float:
    """Log of the E that decides one criterion at one step."""
    criteria = len(list(_criteria(analysis, Observed(classes=2, differing=Tally()))))
    return math.log(criteria * steps / (1 - analysis.confidence))


def _findings(analysis: Analysis, steps: int, new: Observed, old: Observed) -> tuple[Finding, ...]:
    threshold = log_threshold(analysis, steps)
    return tuple(look(analysis, threshold, new, old) for look in _criteria(analysis, new))


Look = Callable[[Analysis, float, Observed, Observed], Finding]


def _criteria(analysis: Analysis, new: Observed) -> Iterator[Look]:
    """What the plan wants looked at."""
    yield _error_rate
    if analysis.max_p50_ratio is not None:
        yield _latency(Criterion.LATENCY_P50, 0.5, analysis.max_p50_ratio)
    if analysis.max_p99_ratio is not None:
        yield _latency(Criterion.LATENCY_P99, 0.99, analysis.max_p99_ratio)
    if analysis.max_shift is not None:
        limit = analysis.max_shift
        yield _drift(limit) if new.classes else _not_applicable(Criterion.DRIFT, limit)
    if (quality := analysis.quality) is not None:
        known = _tells(quality.metric, new.classes)
        yield _quality(quality) if known else _not_applicable(Criterion.QUALITY, quality.max_drop)
    if analysis.disagreement is not None and new.differing is not None:
        yield _disagreement(analysis.disagreement.max_share, new.differing)


def _tells(metric: QualityMetric, classes: int) -> bool:
    """Whether a model with so many classes has this metric."""
    return classes == 2 or (metric is QualityMetric.ACCURACY and classes > 0)


def _not_applicable(criterion: Criterion, limit: float) -> Look:
    def look(_analysis: Analysis, _threshold: float, _new: Observed, _old: Observed) -> Finding:
        return Finding(criterion, Standing.NOT_APPLICABLE, 0.0, 0.0, 0.0, None, None, limit, 0, 0)

    return look


def _error_rate(analysis: Analysis, threshold: float, new: Observed, old: Observed) -> Finding:
    limit = analysis.max_error_increase
    failed, failed_old = _failures(new.outcomes), _failures(old.outcomes)
    if failed_old.total >= analysis.min_samples:
        return _of_shares(Criterion.ERROR_RATE, analysis, threshold, limit, failed, failed_old)
    # The old version is hardly asked any more, or never was: the limit is that of the failures themselves.
    return _of_share(Criterion.ERROR_RATE, analysis, threshold, limit, failed, failed_old)


def _latency(criterion: Criterion, probability: float, limit: float) -> Look:
    def look(analysis: Analysis, threshold: float, new: Observed, old: Observed) -> Finding:
        one, other = Histogram(new.latencies), Histogram(old.latencies)
        low, high = sequential.quantile_shift_interval(one, other, probability, threshold)
        enough = min(one.total, other.total) >= analysis.min_samples
        shift = one.quantile(probability) - other.quantile(probability)
        # Between two buckets the limit is the upper one.
        standing = _standing(enough, shift, low, math.ceil(BUCKETS_PER_DOUBLING * math.log2(limit)))
        return Finding(
            criterion,
            standing,
            new=_factor(one.quantile(probability)) if one.total else 0.0,
            old=_factor(other.quantile(probability)) if other.total else 0.0,
            effect=_factor(shift) if one.total and other.total else 1.0,
            low=None if low is None else _factor(low),
            high=None if high is None else _factor(high),
            limit=limit,
            new_samples=one.total,
            old_samples=other.total,
        )

    return look


def _drift(limit: float) -> Look:
    def look(analysis: Analysis, threshold: float, new: Observed, old: Observed) -> Finding:
        # Each class may become more and less frequent.
        strict = threshold + math.log(2 * new.classes)
        totals = sum(new.answers.values()), sum(old.answers.values())
        findings = [
            _of_shares(Criterion.DRIFT, analysis, strict, limit, one, other)
            for answer in sorted({*new.answers, *old.answers})
            for one, other in _both_ways(
                Tally(new.answers.get(answer, 0), totals[0]), Tally(old.answers.get(answer, 0), totals[1])
            )
        ]
        if not findings:
            return _of_shares(Criterion.DRIFT, analysis, strict, limit, Tally(), Tally())
        return max(findings, key=lambda found: (found.standing is Standing.VIOLATED, found.effect))

    return look


def _both_ways(one: Tally, other: Tally) -> tuple[tuple[Tally, Tally], tuple[Tally, Tally]]:
    """A class's answers, and those that are not of it: where they become more, it becomes less."""
    return (one, other), (Tally(one.misses, one.total), Tally(other.misses, other.total))


def _quality(bound: QualityBound) -> Look:
    def look(analysis: Analysis, threshold: float, new: Observed, old: Observed) -> Finding:
        one, other = _errors(bound.metric, new.feedback), _errors(bound.metric, old.feedback)
        return _of_shares(Criterion.QUALITY, analysis, threshold, bound.max_drop, one, other)

    return look


def _disagreement(limit: float, differing: Tally) -> Look:
    def look(analysis: Analysis, threshold: float, _new: Observed, _old: Observed) -> Finding:
        # Both were asked the same, so there is one share, and nothing to compare it with.
        same = Tally(0, differing.total)
        return _of_share(Criterion.DISAGREEMENT, analysis, threshold, limit, differing, same)

    return look


def _errors(metric: QualityMetric, cells: tuple[Cell, ...]) -> Tally:
    """Wrong answers among those that the metric is a share of."""
    match metric:
        case QualityMetric.ACCURACY:
            counted = list(cells)
        case QualityMetric.RECALL:
            counted = [cell for cell in cells if cell.label == 1]
        case QualityMetric.PRECISION:
            counted = [cell for cell in cells if cell.answer == 1]
    wrong = sum(cell.count for cell in counted if cell.answer != cell.label)
    return Tally(wrong, sum(cell.count for cell in counted))


def _of_share(
    criterion: Criterion, analysis: Analysis, threshold: float, limit: float, new: Tally, old: Tally
) -> Finding:
    """The new version's share by itself; the old one's is told beside it."""
    low, high = sequential.share_interval(new, threshold)
    return Finding(
        criterion,
        _standing(new.total >= analysis.min_samples, new.share, low, limit),
        new=new.share,
        old=old.share,
        effect=new.share,
        low=low,
        high=high,
        limit=limit,
        new_samples=new.total,
        old_samples=old.total,
    )


def _of_shares(
    criterion: Criterion, analysis: Analysis, threshold: float, limit: float, new: Tally, old: Tally
) -> Finding:
    low, high = sequential.increase_interval(new, old, threshold)
    enough = min(new.total, old.total) >= analysis.min_samples
    effect = new.share - old.share
    return Finding(
        criterion,
        _standing(enough, effect, low, limit),
        new=new.share,
        old=old.share,
        effect=effect,
        low=low,
        high=high,
        limit=limit,
        new_samples=new.total,
        old_samples=old.total,
    )


def _standing(enough: bool, effect: float, low: float | None, limit: float) -> Standing:
    if not enough:
        return Standing.INSUFFICIENT
    if low is not None and low > limit:
        return Standing.VIOLATED
    return Standing.SUSPECT if effect > limit else Standing.WITHIN


def _failures(outcomes: Outcomes) -> Tally:
    return Tally(outcomes.failed, outcomes.total)


def _factor(buckets: int) -> float:
    """Seconds of a bucket's upper edge; of a shift between buckets, the ratio."""
    return float(2 ** (buckets / BUCKETS_PER_DOUBLING))
