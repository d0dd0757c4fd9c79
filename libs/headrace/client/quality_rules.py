"""A dataset's quality rules in a pipeline's file.

quality:
  - {rule: null_share, field: site, max: 0.01, action: block}
  - {rule: range, field: mean_radius, min: 0, max: 50, action: warn}
  - {rule: class_balance, min_share: 0.2, action: warn}
  - {rule: drift, against: tag:golden, method: psi, max: 0.2, action: block}

Drift is that of each feature, or of the one that `field` names.
"""

from __future__ import annotations

from typing import Final

from headrace.api.ingestion.v1 import quality_pb2 as quality
from headrace.client.yaml_reader import Document, Place

_ACTIONS: Final = {"warn": quality.QUALITY_ACTION_WARN, "block": quality.QUALITY_ACTION_BLOCK}
_METHODS: Final = {"psi": quality.DRIFT_METHOD_PSI, "ks": quality.DRIFT_METHOD_KS}
_COMMON: Final = ("rule", "action")
# Each rule's own keys, and those of them that it needs.
_KEYS: Final = {
    "null_share": (("field", "max"), ("field", "max")),
    "range": (("field", "min", "max"), ("field",)),
    "class_balance": (("min_share",), ("min_share",)),
    "drift": (("field", "against", "method", "max"), ("max",)),
}
_PREVIOUS: Final = "previous"
_TAG: Final = "tag:"


def quality_rule(document: Document, place: Place) -> quality.QualityRule:
    """Read one rule."""
    name = document.choice(document.entries(place).get("rule"), {rule: rule for rule in _KEYS}, "")
    if not name:
        every = {key for keys, _ in _KEYS.values() for key in keys}
        document.mapping(place, (*_COMMON, *sorted(every)), _COMMON)
        return quality.QualityRule()
    keys, required = _KEYS[name]
    entries = document.mapping(place, (*_COMMON, *keys), (*_COMMON, *required))
    rule = quality.QualityRule(
        action=document.choice(entries.get("action"), _ACTIONS, quality.QUALITY_ACTION_UNSPECIFIED)
    )
    match name:
        case "null_share":
            rule.null_share.field = document.text(entries.get("field"))
            rule.null_share.max = document.number(entries.get("max"))
        case "range":
            rule.range.field = document.text(entries.get("field"))
            if "min" in entries:
                rule.range.min = document.number(entries["min"])
            if "max" in entries:
                rule.range.max = document.number(entries["max"])
        case "class_balance":
            rule.class_balance.min_share = document.number(entries.get("min_share"))
        case _:
            rule.drift.field = document.text(entries.get("field"))
            rule.drift.tag = _reference(document, entries.get("against"))
            rule.drift.method = document.choice(entries.get("method"), _METHODS, quality.DRIFT_METHOD_PSI)
            rule.drift.max = document.number(entries.get("max"))
    return rule


def _reference(document: Document, place: Place | None) -> str:
    """Return the tag of the version to compare with, or "" for the one before."""
    against = document.text(place, _PREVIOUS)
    if against == _PREVIOUS:
        return ""
    if place is not None and not (against.startswith(_TAG) and against != _TAG):
        document.fail(place, f"must be {_PREVIOUS} or tag:NAME, not {against!r}")
    return against.removeprefix(_TAG)
