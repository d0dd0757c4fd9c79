"""Between drift and its messages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from headrace.api.inference.v1 import drift_pb2 as api
from headrace.api.scheduling.v1 import drift_pb2 as scheduling
from headrace.events.inference.v1 import events_pb2
from headrace.inference.domain.drift import DEFAULT_RULES, DriftRules, Finding
from headrace.inference.domain.drift_watch import Episode, WindowResult
from headrace.inference.use_cases.watch_drift import DriftReport
from headrace.rpc.convert import from_duration, to_duration, to_timestamp

# An event has room for so many of a wide table's columns; GetDrift tells them all.
_TOLD: Final = 100


def rules_from(spec: scheduling.DriftSpec) -> DriftRules:
    """How a deployment is watched, defaults for what is not said. Raises InvalidArgument/INVALID_DRIFT."""
    defaults = DEFAULT_RULES
    return DriftRules(
        requests=spec.requests or defaults.requests,
        every=from_duration(spec.every) if spec.HasField("every") else defaults.every,
        windows=spec.windows or defaults.windows,
        min_psi=spec.min_psi or defaults.min_psi,
        confidence=spec.confidence or defaults.confidence,
    )


def drift_spec(rules: DriftRules) -> scheduling.DriftSpec:
    """How a deployment is watched, defaults included."""
    return scheduling.DriftSpec(
        requests=rules.requests,
        every=to_duration(rules.every),
        windows=rules.windows,
        min_psi=rules.min_psi,
        confidence=rules.confidence,
    )


def drift_message(report: DriftReport) -> api.Drift:
    """How a deployment's version stands."""
    return api.Drift(
        deployment=report.deployment,
        model_version=report.version,
        dataset=report.dataset,
        dataset_version=report.dataset_version,
        state=api.DriftState.Value(f"DRIFT_STATE_{report.state}"),
        message=report.message,
        spec=drift_spec(report.rules),
        window=window_message(report.window, report.window.findings) if report.window else None,
        episodes=map(episode_message, report.episodes),
    )


def window_message(window: WindowResult, findings: Iterable[Finding]) -> api.DriftWindow:
    """A window with these of its findings."""
    return api.DriftWindow(
        model_version=window.version,
        begin_time=to_timestamp(window.begin),
        end_time=to_timestamp(window.end),
        requests=window.requests,
        rows=window.rows,
        findings=[
            api.DriftFinding(
                column=finding.column,
                test=api.DriftTest.Value(f"DRIFT_TEST_{finding.test}"),
                statistic=finding.statistic,
                p_value=finding.p_value,
                psi=finding.psi,
                drifts=finding.drifts,
            )
            for finding in findings
        ],
    )


def episode_message(episode: Episode) -> api.DriftEpisode:
    """An episode."""
    message = api.DriftEpisode(
        id=episode.id,
        deployment=episode.deployment,
        model=episode.model,
        model_version=episode.version,
        dataset=episode.dataset,
        dataset_version=episode.dataset_version,
        columns=episode.columns[:_TOLD],
        begin_time=to_timestamp(episode.begin_time),
        end_time=to_timestamp(episode.end_time),
    )
    if episode.end_reason:
        message.end_reason = api.DriftEndReason.Value(f"DRIFT_END_REASON_{episode.end_reason}")
    return message


def drift_detected(episode: Episode, window: WindowResult) -> events_pb2.DriftDetected:
    """That an episode began, with what drifts the most."""
    drifting = [finding for finding in window.findings if finding.drifts]
    drifting.sort(key=lambda finding: -finding.psi)
    return events_pb2.DriftDetected(
        episode=episode_message(episode), window=window_message(window, drifting[:_TOLD])
    )


def drift_ended(episode: Episode) -> events_pb2.DriftEnded:
    """That an episode is over."""
    return events_pb2.DriftEnded(episode=episode_message(episode))
