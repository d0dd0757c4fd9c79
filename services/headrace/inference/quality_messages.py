"""Quality and true labels between messages and use cases."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.errors import FieldViolation, InvalidArgument
from headrace.inference.domain.gaps import Gap, Interval
from headrace.inference.use_cases.measure_quality import Quality, SegmentQuality, Standing
from headrace.inference.use_cases.submit_feedback import INVALID_FEEDBACK, GivenLabel
from headrace.rpc.convert import from_timestamp


def given_labels(messages: Iterable[api.TrueLabel]) -> list[GivenLabel]:
    """Labels as their sender gave them. Raises InvalidArgument/INVALID_FEEDBACK for a time that is none."""
    given: list[GivenLabel] = []
    for place, message in enumerate(messages):
        kind = message.WhichOneof("label")
        label = None if kind is None else message.number if kind == "number" else message.text
        try:
            time = from_timestamp(message.time) if message.HasField("time") else None
        except (ValueError, OverflowError) as error:
            fault = FieldViolation(f"labels[{place}].time", "must be a time from the year 1 to 9999")
            raise InvalidArgument(
                INVALID_FEEDBACK, f"{fault.field} {fault.description}", fields=[fault]
            ) from error
        given.append((message.prediction_id, label, time))
    return given


def quality_message(deployment: str, quality: Quality) -> api.Quality:
    """A deployment's quality."""
    return api.Quality(
        deployment=deployment,
        prediction_count=quality.all.predictions,
        feedback_count=quality.all.feedback,
        metrics=quality.all.metrics,
        intervals=_intervals(quality.all.intervals),
        versions=_versions(quality.versions),
        segments=map(_segment, quality.segments),
        segment_count=quality.segment_count,
        gaps=[_gap(metric, gap, quality) for metric, gap in quality.gaps.items()],
        min_labels=quality.min_labels,
    )


def _segment(found: SegmentQuality) -> api.Quality.PerSegment:
    return api.Quality.PerSegment(
        segment=found.segment or "",
        other=found.segment is None,
        prediction_count=found.all.predictions,
        feedback_count=found.all.feedback,
        metrics=found.all.metrics,
        intervals=_intervals(found.all.intervals),
        versions=_versions(found.versions),
    )


def _versions(versions: Mapping[int, Standing]) -> list[api.Quality.PerVersion]:
    return [
        api.Quality.PerVersion(
            version=version,
            prediction_count=found.predictions,
            feedback_count=found.feedback,
            metrics=found.metrics,
            intervals=_intervals(found.intervals),
        )
        for version, found in versions.items()
    ]


def _intervals(intervals: Mapping[str, Interval]) -> dict[str, api.Quality.Interval]:
    return {name: api.Quality.Interval(low=one.low, high=one.high) for name, one in intervals.items()}


def _gap(metric: str, gap: Gap, quality: Quality) -> api.Quality.Gap:
    values = {one.segment: one.all.metrics[metric] for one in quality.segments if metric in one.all.metrics}
    return api.Quality.Gap(
        metric=metric,
        best=gap.best,
        worst=gap.worst,
        best_value=values[gap.best],
        worst_value=values[gap.worst],
        value=gap.value,
        low=gap.within.low,
        high=gap.within.high,
        certain=gap.is_certain,
    )
