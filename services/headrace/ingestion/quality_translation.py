"""Quality rules and findings between the domain's types and the contract's messages."""

from __future__ import annotations

from typing import Final

from headrace.api.ingestion.v1 import quality_pb2 as api
from headrace.ingestion.domain.quality import (
    ClassBalance,
    Drift,
    DriftMethod,
    Finding,
    NullShare,
    QualityRule,
    Range,
    VersionVerdict,
)

_ACTIONS: Final = {
    api.QUALITY_ACTION_WARN: VersionVerdict.WARN,
    api.QUALITY_ACTION_BLOCK: VersionVerdict.BLOCK,
}
_ACTION_NUMBERS: Final = {verdict: number for number, verdict in _ACTIONS.items()}
_METHODS: Final = {api.DRIFT_METHOD_PSI: DriftMethod.PSI, api.DRIFT_METHOD_KS: DriftMethod.KS}
_METHOD_NUMBERS: Final = {method: number for number, method in _METHODS.items()}
_VERDICTS: Final = {
    api.VERDICT_PASS: VersionVerdict.PASS,
    api.VERDICT_WARN: VersionVerdict.WARN,
    api.VERDICT_BLOCK: VersionVerdict.BLOCK,
}
_VERDICT_NUMBERS: Final = {verdict: number for number, verdict in _VERDICTS.items()}


def rule_from_message(message: api.QualityRule) -> QualityRule:
    """The rule of a message that keeps the proto's own rules."""
    action = _ACTIONS[message.action]
    match message.WhichOneof("rule"):
        case "null_share":
            return QualityRule(NullShare(message.null_share.field, message.null_share.max), action)
        case "range":
            bounds = message.range
            low = bounds.min if bounds.HasField("min") else None
            high = bounds.max if bounds.HasField("max") else None
            return QualityRule(Range(bounds.field, low, high), action)
        case "class_balance":
            return QualityRule(ClassBalance(message.class_balance.min_share), action)
        case _:
            drift = message.drift
            return QualityRule(Drift(drift.field, drift.tag, _METHODS[drift.method], drift.max), action)


def rule_to_message(rule: QualityRule) -> api.QualityRule:
    """The same rule in the contract's words."""
    message = api.QualityRule(action=_ACTION_NUMBERS[rule.action])
    match rule.check:
        case NullShare(field, most):
            message.null_share.field = field
            message.null_share.max = most
        case Range(field, low, high):
            message.range.CopyFrom(api.QualityRule.Range(field=field, min=low, max=high))
        case ClassBalance(min_share):
            message.class_balance.min_share = min_share
        case Drift(field, tag, method, most):
            message.drift.CopyFrom(
                api.QualityRule.Drift(field=field, tag=tag, method=_METHOD_NUMBERS[method], max=most)
            )
    return message


def verdict_to_message(verdict: VersionVerdict | None) -> api.Verdict.ValueType:
    """None: the version was never judged."""
    return _VERDICT_NUMBERS[verdict] if verdict else api.VERDICT_UNSPECIFIED


def finding_to_message(finding: Finding) -> api.QualityFinding:
    """The same finding in the contract's words."""
    return api.QualityFinding(
        rule=finding.rule,
        field=finding.field,
        verdict=_VERDICT_NUMBERS[finding.verdict],
        value=finding.value,
        message=finding.message,
    )


def finding_from_message(message: api.QualityFinding) -> Finding:
    """The inverse of `finding_to_message`."""
    return Finding(
        message.rule,
        message.field,
        _VERDICTS[message.verdict],
        message.value if message.HasField("value") else None,
        message.message,
    )
