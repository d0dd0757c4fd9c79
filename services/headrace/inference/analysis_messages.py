"""Between what a rollout is judged by, and found, and its messages."""

from __future__ import annotations

from datetime import timedelta

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.inference.domain.analysis import (
    DEFAULT_ANALYSIS,
    Analysis,
    DisagreementBound,
    Finding,
    Judgement,
    QualityBound,
    QualityMetric,
)
from headrace.rpc.convert import from_duration, to_duration, to_timestamp

# A step may last so many times its hold while it is undecided.
PATIENCE = 10


def analysis_from(message: scheduling_pb2.RolloutAnalysis, hold: timedelta) -> Analysis:
    """What a plan with this hold judges by. Raises InvalidArgument/INVALID_ROLLOUT."""
    defaults = DEFAULT_ANALYSIS
    return Analysis(
        max_error_increase=(
            message.error_rate.max_increase if message.HasField("error_rate") else defaults.max_error_increase
        ),
        max_p50_ratio=message.latency_p50.max_ratio if message.HasField("latency_p50") else None,
        max_p99_ratio=message.latency_p99.max_ratio if message.HasField("latency_p99") else None,
        max_shift=message.drift.max_shift if message.HasField("drift") else None,
        quality=_quality_from(message.quality) if message.HasField("quality") else None,
        disagreement=(
            DisagreementBound(message.disagreement.max_share, message.disagreement.tolerance)
            if message.HasField("disagreement")
            else None
        ),
        min_samples=message.min_samples or defaults.min_samples,
        confidence=message.confidence or defaults.confidence,
        longest_hold=(
            from_duration(message.longest_hold) if message.HasField("longest_hold") else PATIENCE * hold
        ),
    )


def analysis_message(analysis: Analysis) -> scheduling_pb2.RolloutAnalysis:
    """What is judged by, defaults included."""
    message = scheduling_pb2.RolloutAnalysis(
        error_rate=scheduling_pb2.RolloutAnalysis.ErrorRate(max_increase=analysis.max_error_increase),
        min_samples=analysis.min_samples,
        confidence=analysis.confidence,
        longest_hold=to_duration(analysis.longest_hold),
    )
    if analysis.max_p50_ratio is not None:
        message.latency_p50.max_ratio = analysis.max_p50_ratio
    if analysis.max_p99_ratio is not None:
        message.latency_p99.max_ratio = analysis.max_p99_ratio
    if analysis.max_shift is not None:
        message.drift.SetInParent()
        message.drift.max_shift = analysis.max_shift
    if analysis.quality is not None:
        message.quality.metric = scheduling_pb2.RolloutAnalysis.QualityMetric.Value(
            f"QUALITY_METRIC_{analysis.quality.metric}"
        )
        message.quality.max_drop = analysis.quality.max_drop
    if analysis.disagreement is not None:
        message.disagreement.SetInParent()
        message.disagreement.max_share = analysis.disagreement.max_share
        message.disagreement.tolerance = analysis.disagreement.tolerance
    return message


def judgement_message(judgement: Judgement) -> api.RolloutJudgement:
    """A verdict with its numbers."""
    return api.RolloutJudgement(
        verdict=api.RolloutVerdict.Value(f"ROLLOUT_VERDICT_{judgement.verdict}"),
        findings=map(_finding_message, judgement.findings),
        time=to_timestamp(judgement.time),
    )


def _quality_from(message: scheduling_pb2.RolloutAnalysis.Quality) -> QualityBound:
    name = scheduling_pb2.RolloutAnalysis.QualityMetric.Name(message.metric)
    return QualityBound(QualityMetric(name.removeprefix("QUALITY_METRIC_")), message.max_drop)


def _finding_message(finding: Finding) -> api.RolloutFinding:
    return api.RolloutFinding(
        criterion=api.RolloutCriterion.Value(f"ROLLOUT_CRITERION_{finding.criterion}"),
        standing=api.RolloutStanding.Value(f"ROLLOUT_STANDING_{finding.standing}"),
        new_value=finding.new,
        old_value=finding.old,
        effect=finding.effect,
        low=finding.low,
        high=finding.high,
        limit=finding.limit,
        new_samples=finding.new_samples,
        old_samples=finding.old_samples,
    )
