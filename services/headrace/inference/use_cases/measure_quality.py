"""Quality of live answers: of all, of each version and of each segment of requests."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.inference.domain.gaps import LOWER_IS_BETTER, Gap, Interval, Measure, widest_gap
from headrace.inference.domain.quality import Cell, in_answers_terms, is_binary, measures, metrics
from headrace.inference.use_cases.ports import Group, UnitOfWork

DEFAULT_SEGMENTS: Final = 50
DEFAULT_LABELS: Final = 30
# Requests that named none, and those whose parameter is none, are of no one kind: they are not compared.
NOT_COMPARED: Final = frozenset({"", "?"})


@dataclass(frozen=True, slots=True)
class Standing:
    """Some predictions, how many of them have a label, and what the labels say."""

    predictions: int
    feedback: int
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]


@dataclass(frozen=True, slots=True)
class SegmentQuality:
    """One segment over all versions and each; None: all that are not among the largest."""

    segment: str | None
    all: Standing
    versions: Mapping[int, Standing]


@dataclass(frozen=True, slots=True)
class Quality:
    """A deployment's live quality. Segments by size; gaps by metric."""

    all: Standing
    versions: Mapping[int, Standing]
    segments: Sequence[SegmentQuality]
    segment_count: int
    gaps: Mapping[str, Gap]
    min_labels: int


@dataclass(frozen=True, slots=True)
class _Part:
    """Groups of predictions with what is known of them."""

    predictions: int
    cells: Sequence[Cell]


class MeasureQuality:
    """From the predictions and the feedback that have arrived."""

    def __init__(self, work: UnitOfWork) -> None:
        self._work = work

    async def __call__(
        self, deployment: str, *, version: int = 0, max_segments: int = 0, min_labels: int = 0
    ) -> Quality:
        """Quality of all versions, or of one that is not 0; other zeros are the defaults. Raises NotFound."""
        enough = min_labels or DEFAULT_LABELS
        async with self._work() as work:
            known = await work.rows.deployment(deployment)
            served = await work.rows.served_versions(known.model)
            counted = await work.rows.prediction_counts(deployment, version, max_segments or DEFAULT_SEGMENTS)
            shown = {group.segment for group in counted.predictions if group.segment is not None}
            met = await work.rows.answer_counts(deployment, version, shown)
        classes = {one.version: one.classes for one in served}
        cells = {
            group: in_answers_terms(found, classes.get(group.version, ())) for group, found in met.items()
        }
        # What came in between the two questions is in the second answer alone.
        groups = counted.predictions.keys() | cells.keys()

        def part(wanted: Collection[Group]) -> _Part:
            return _Part(
                sum(counted.predictions.get(group, 0) for group in wanted),
                [cell for group in wanted for cell in cells.get(group, ())],
            )

        everything = part(groups)
        kind = any(classes.values())
        # As the deployment's: a segment in which a class never came has no fewer classes.
        binary = is_binary(everything.cells)

        def by_version(wanted: Collection[Group], *, binary: bool | None) -> dict[int, Standing]:
            split: defaultdict[int, list[Group]] = defaultdict(list)
            for group in wanted:
                split[group.version].append(group)
            return {
                number: _standing(part(split[number]), classes=bool(classes.get(number)), binary=binary)
                for number in sorted(split)
            }

        split: defaultdict[str | None, list[Group]] = defaultdict(list)
        for group in groups:
            split[group.segment].append(group)
        sizes = Counter({segment: part(wanted).predictions for segment, wanted in split.items()})
        order = sorted(split, key=lambda one: (one is None, -sizes[one], one or ""))
        return Quality(
            all=_standing(everything, classes=kind, binary=None),
            versions=by_version(groups, binary=None),
            segments=[
                SegmentQuality(
                    segment,
                    _standing(part(split[segment]), classes=kind, binary=binary),
                    by_version(split[segment], binary=binary),
                )
                for segment in (order if counted.segments else ())
            ],
            segment_count=counted.segments,
            gaps=_gaps(
                {
                    segment: measures(part(split[segment]).cells, classes=kind, binary=binary)
                    for segment in order
                    if segment is not None and segment not in NOT_COMPARED
                },
                enough,
            ),
            min_labels=enough,
        )


def _standing(part: _Part, *, classes: bool, binary: bool | None) -> Standing:
    """`binary`: None where what the part itself has decides."""
    decided = is_binary(part.cells) if binary is None else binary
    found = measures(part.cells, classes=classes, binary=decided)
    return Standing(
        predictions=part.predictions,
        feedback=sum(cell.count for cell in part.cells),
        metrics={name: one.value for name, one in found.items()}
        if classes
        else metrics(part.cells, classes=False),
        intervals={name: one.interval() for name, one in found.items()},
    )


def _gaps(measured: Mapping[str, Mapping[str, Measure]], enough: int) -> dict[str, Gap]:
    """The widest gap in each metric, between segments with so many labels that it is made of."""
    gaps = {}
    for name in dict.fromkeys(name for found in measured.values() for name in found):
        compared = {
            segment: found[name]
            for segment, found in measured.items()
            if name in found and found[name].count >= enough
        }
        if gap := widest_gap(compared, lower_is_better=name in LOWER_IS_BETTER):
            gaps[name] = gap
    return gaps
