"""What a dataset's owner expects of its versions, and what a version's profile says to it."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headrace.errors import FieldViolation, InvalidArgument
from headrace.ingestion.domain.comparison import kolmogorov_smirnov, population_stability_index
from headrace.ingestion.domain.profile import FieldProfile, Profile
from headrace.ingestion.domain.schema import Field, FieldType, Schema
from headrace.values import value_text


class VersionVerdict(enum.IntEnum):
    """What becomes of a version: the larger, the worse."""

    PASS = 1
    WARN = 2
    BLOCK = 3


class DriftMethod(enum.Enum):
    """How the distance of two distributions is measured."""

    PSI = "psi"
    KS = "ks"


@dataclass(frozen=True, slots=True)
class NullShare:
    """Of a field's rows at most `max` have no value."""

    field: str
    max: float


@dataclass(frozen=True, slots=True)
class Range:
    """All of a number's values lie within the bounds."""

    field: str
    min: float | None = None
    max: float | None = None


@dataclass(frozen=True, slots=True)
class ClassBalance:
    """Each of the label's classes has at least `min_share` of the labels."""

    min_share: float


@dataclass(frozen=True, slots=True)
class Drift:
    """A field, or each feature where it is "", is at most `max` away from the reference's.

    The reference is the version that `tag` names, or the one before where it is "".
    """

    field: str
    tag: str
    method: DriftMethod
    max: float


Check = NullShare | Range | ClassBalance | Drift


@dataclass(frozen=True, slots=True)
class QualityRule:
    """A check, and the verdict on a version that fails it."""

    check: Check
    action: VersionVerdict


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found. `value` is None where there was nothing to measure."""

    rule: str
    field: str
    verdict: VersionVerdict
    value: float | None
    message: str


@dataclass(frozen=True, slots=True)
class _Measured:
    field: str
    fails: bool
    value: float | None
    message: str


def check_quality(rules: Sequence[QualityRule], schema: Schema) -> None:
    """Raise `InvalidArgument` INVALID_QUALITY that lists every rule of which the schema makes no sense."""
    violations = [
        violation for index, rule in enumerate(rules) for violation in _violations(index, rule, schema)
    ]
    if violations:
        first = violations[0]
        raise InvalidArgument("INVALID_QUALITY", f"{first.field}: {first.description}", fields=violations)


def references(rules: Sequence[QualityRule]) -> frozenset[str]:
    """The tags of the versions that the rules compare with; "" for the one before."""
    return frozenset(rule.check.tag for rule in rules if isinstance(rule.check, Drift))


def judge(
    rules: Sequence[QualityRule], schema: Schema, profile: Profile, compared: Mapping[str, Profile]
) -> tuple[Finding, ...]:
    """What each rule found. `compared` has the profiles of `references` as far as there are any."""
    return tuple(_finding(rule, schema, profile, compared) for rule in rules)


def verdict_of(findings: Sequence[Finding]) -> VersionVerdict:
    """The worst one."""
    return max((finding.verdict for finding in findings), default=VersionVerdict.PASS)


def _finding(rule: QualityRule, schema: Schema, profile: Profile, compared: Mapping[str, Profile]) -> Finding:
    match rule.check:
        case NullShare():
            name, measured = "null_share", _null_share(rule.check, profile)
        case Range():
            name, measured = "range", _range(rule.check, profile)
        case ClassBalance():
            name, measured = "class_balance", _class_balance(rule.check, schema.label, profile)
        case Drift():
            name, measured = "drift", _drift(rule.check, schema, profile, compared)
    verdict = rule.action if measured.fails else VersionVerdict.PASS
    return Finding(name, measured.field, verdict, measured.value, measured.message)


def _null_share(check: NullShare, profile: Profile) -> _Measured:
    field = profile.field(check.field)
    share = field.null_share if field else 0.0
    return _Measured(
        check.field,
        share > check.max,
        share,
        f"{check.field}: {share:.4g} of the rows have none, and {check.max:g} is the most",
    )


def _range(check: Range, profile: Profile) -> _Measured:
    field = profile.field(check.field)
    moments = field.moments if field else None
    if field is None or moments is None or not moments.count:
        return _Measured(check.field, False, None, f"{check.field} has no values")
    low, high = _stored(check.min, field.type), _stored(check.max, field.type)
    if low is not None and moments.min < low:
        message = f"{check.field}: the smallest is {moments.min:.6g}, below {low:g}"
        return _Measured(check.field, True, moments.min, message)
    if high is not None and moments.max > high:
        message = f"{check.field}: the largest is {moments.max:.6g}, above {high:g}"
        return _Measured(check.field, True, moments.max, message)
    value = moments.max if check.max is not None else moments.min
    return _Measured(
        check.field, False, value, f"{check.field} lies in {moments.min:.6g} to {moments.max:.6g}"
    )


def _stored(bound: float | None, field_type: FieldType) -> float | None:
    """The bound as a column of that type would have it: a value that equals it is stored so."""
    if bound is None or field_type is not FieldType.FLOAT32:
        return bound
    with np.errstate(over="ignore"):
        return float(np.float32(bound))


def _class_balance(check: ClassBalance, label: Field, profile: Profile) -> _Measured:
    field = profile.field(label.name)
    if field is None or not field.count:
        return _Measured(label.name, False, None, f"{label.name} has no values")
    counted = field.values
    if counted is None or counted.error:
        # So many that the rarest has next to none.
        return _Measured(label.name, True, 0.0, f"{label.name} has too many classes to count")
    absent = {value_text(value): 0 for value in label.allowed_values}
    counts = {**absent, **counted.counts}
    rarest = min(counts, key=counts.__getitem__)
    share = counts[rarest] / field.count
    return _Measured(
        label.name,
        share < check.min_share,
        share,
        f"{label.name}: class {rarest} has {share:.4g} of the labels, and {check.min_share:g} is the least",
    )


def _drift(check: Drift, schema: Schema, profile: Profile, compared: Mapping[str, Profile]) -> _Measured:
    reference = compared.get(check.tag)
    against = f"the version {check.tag}" if check.tag else "the version before"
    if reference is None:
        return _Measured(check.field, False, None, f"there is no profile of {against} to compare with")
    names = [check.field] if check.field else [feature.name for feature in schema.features]
    distances = {
        name: distance
        for name in names
        if (distance := _distance(check.method, reference.field(name), profile.field(name))) is not None
    }
    if not distances:
        return _Measured(check.field, False, None, f"{against} has no values to compare with")
    worst = max(distances, key=distances.__getitem__)
    distance = distances[worst]
    return _Measured(
        worst,
        distance > check.max,
        distance,
        f"{worst}: {check.method.value} to {against} is {distance:.4g}, and {check.max:g} is the most",
    )


def _distance(method: DriftMethod, base: FieldProfile | None, other: FieldProfile | None) -> float | None:
    if base is None or other is None:
        return None
    measure = population_stability_index if method is DriftMethod.PSI else kolmogorov_smirnov
    return measure(base, other)


def _violations(index: int, rule: QualityRule, schema: Schema) -> Iterator[FieldViolation]:
    fields = {field.name: field for field in (*schema.features, schema.label)}
    path = f"quality[{index}]"
    check = rule.check
    if isinstance(check, ClassBalance):
        if schema.label.type.is_float:
            yield FieldViolation(path, f'the label "{schema.label.name}" is a measurement and has no classes')
        return
    if isinstance(check, Drift) and not check.field:
        # Features without an order are passed over.
        return
    field = fields.get(check.field)
    if field is None:
        yield FieldViolation(f"{path}.field", f'there is no feature or label "{check.field}"')
        return
    ordered = isinstance(check, Range) or (isinstance(check, Drift) and check.method is DriftMethod.KS)
    if ordered and not field.type.is_number:
        yield FieldViolation(f"{path}.field", f'"{field.name}" is a {field.type.value}, not a number')
    if isinstance(check, Range):
        if check.min is None and check.max is None:
            yield FieldViolation(path, "a range needs min, max or both")
        elif check.min is not None and check.max is not None and check.min > check.max:
            yield FieldViolation(f"{path}.min", f"{check.min:g} is above max, {check.max:g}")
