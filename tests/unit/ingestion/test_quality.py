from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pytest

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.profile import Profile, extended
from headrace.ingestion.domain.quality import (
    Check,
    ClassBalance,
    Drift,
    DriftMethod,
    Finding,
    NullShare,
    QualityRule,
    Range,
    VersionVerdict,
    check_quality,
    judge,
    verdict_of,
)
from headrace.ingestion.domain.schema import Field, FieldType, Schema

SCHEMA = Schema(
    "id",
    (
        Field("x", FieldType.FLOAT64, nullable=True),
        Field("z", FieldType.FLOAT64, nullable=True),
        Field("site", FieldType.STRING, nullable=True),
    ),
    Field("y", FieldType.INT8, allowed_values=(0, 1)),
)
PASS, WARN, BLOCK = VersionVerdict.PASS, VersionVerdict.WARN, VersionVerdict.BLOCK


def profile(**columns: Sequence[object]) -> Profile:
    types = {"x": pa.float64(), "z": pa.float64(), "site": pa.string(), "y": pa.int8()}
    batch = pa.record_batch({name: pa.array(values, types[name]) for name, values in columns.items()})
    return extended(None, SCHEMA, [batch])


def found(
    check: Check, made: Profile, compared: Mapping[str, Profile] | None = None, action: VersionVerdict = BLOCK
) -> Finding:
    (finding,) = judge([QualityRule(check, action)], SCHEMA, made, compared or {})
    return finding


def test_a_share_of_nulls_is_held_to_its_most() -> None:
    made = profile(x=[1.0, None, 2.0, 3.0])
    assert found(NullShare("x", 0.25), made).verdict is PASS
    refused = found(NullShare("x", 0.2), made)
    assert (refused.rule, refused.field, refused.verdict, refused.value) == ("null_share", "x", BLOCK, 0.25)
    assert refused.message == "x: 0.25 of the rows have none, and 0.2 is the most"


def test_all_values_lie_in_a_range_or_one_that_does_not_is_named() -> None:
    made = profile(x=[-1.0, 5.0])
    assert found(Range("x", -1, 5), made).verdict is PASS
    assert found(Range("x", min=0), made).value == -1.0
    assert found(Range("x", min=0), made, action=WARN).verdict is WARN
    above = found(Range("x", max=4), made)
    assert (above.verdict, above.value, above.message) == (BLOCK, 5.0, "x: the largest is 5, above 4")
    empty = found(Range("x", 0, 1), profile(x=[None]))
    assert (empty.verdict, empty.value) == (PASS, None)


def test_a_bound_is_met_by_its_value_in_single_precision() -> None:
    schema = Schema("id", (Field("x", FieldType.FLOAT32),), SCHEMA.label)
    made = extended(None, schema, [pa.record_batch({"x": pa.array([0.1, 0.3], pa.float32())})])

    def verdict(low: float, high: float) -> VersionVerdict:
        (finding,) = judge([QualityRule(Range("x", low, high), BLOCK)], schema, made, {})
        return finding.verdict

    # Stored are 0.10000000149 and 0.30000001192.
    assert verdict(0.1, 0.3) is PASS
    assert verdict(0.1, 0.29999) is BLOCK
    assert verdict(0.10001, 0.3) is BLOCK
    assert verdict(-1e300, 1e300) is PASS


def test_the_rarest_class_counts_also_where_no_row_has_it() -> None:
    assert found(ClassBalance(0.25), profile(y=[0, 0, 0, 1])).verdict is PASS
    rare = found(ClassBalance(0.3), profile(y=[0, 0, 0, 1]))
    assert (rare.verdict, rare.value) == (BLOCK, 0.25)
    assert "class 1 has 0.25" in rare.message
    missing = found(ClassBalance(0.1), profile(y=[0, 0]))
    assert (missing.verdict, missing.value) == (BLOCK, 0.0)


def test_classes_with_long_names_are_told_apart() -> None:
    classes = tuple("benign, as far as one section under the microscope can show it, " + n for n in "ab")
    schema = Schema("id", SCHEMA.features, Field("y", FieldType.STRING, allowed_values=classes))
    rules = [QualityRule(ClassBalance(0.25), BLOCK)]

    def judged(*labels: str) -> Finding:
        (finding,) = judge(rules, schema, extended(None, schema, [pa.record_batch({"y": labels})]), {})
        return finding

    assert judged(*classes, classes[0]).verdict is PASS
    absent = judged(classes[0])
    assert (absent.verdict, absent.value) == (BLOCK, 0.0)


@pytest.mark.parametrize("method", DriftMethod)
def test_drift_names_the_worst_feature(method: DriftMethod) -> None:
    base = profile(x=[float(n) for n in range(100)], z=[float(n) for n in range(100)])
    moved = profile(x=[float(n) for n in range(100)], z=[float(n + 50) for n in range(100)])
    check = Drift("", "golden", method, 0.3)
    assert found(check, base, {"golden": base}).verdict is PASS
    drifted = found(check, moved, {"golden": base})
    assert (drifted.field, drifted.verdict) == ("z", BLOCK)
    assert "the version golden" in drifted.message
    assert found(Drift("x", "golden", method, 0.3), moved, {"golden": base}).verdict is PASS


def test_without_a_reference_there_is_no_drift() -> None:
    made = profile(x=[1.0])
    first = found(Drift("", "", DriftMethod.PSI, 0.1), made)
    assert (first.verdict, first.value) == (PASS, None)
    assert first.message == "there is no profile of the version before to compare with"
    assert found(Drift("x", "", DriftMethod.PSI, 0.1), made, {"": profile(x=[None])}).verdict is PASS


def test_the_worst_finding_is_the_verdict() -> None:
    made = profile(x=[None])
    rules = [QualityRule(NullShare("x", 0.5), WARN), QualityRule(NullShare("z", 0.5), BLOCK)]
    findings = judge(rules, SCHEMA, made, {})
    assert verdict_of(findings[:1]) is WARN
    assert verdict_of(findings) is BLOCK
    assert verdict_of(()) is PASS


@pytest.mark.parametrize(
    ("check", "field"),
    [
        (NullShare("nothing", 0.1), "quality[0].field"),
        (Range("site", 0, 1), "quality[0].field"),
        (Range("x"), "quality[0]"),
        (Range("x", 2, 1), "quality[0].min"),
        (Drift("site", "", DriftMethod.KS, 0.1), "quality[0].field"),
    ],
)
def test_rules_of_which_the_schema_makes_no_sense_are_refused(check: Check, field: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_quality([QualityRule(check, WARN)], SCHEMA)
    assert refused.value.reason == "INVALID_QUALITY"
    assert [violation.field for violation in refused.value.fields] == [field]


def test_a_measurement_has_no_classes() -> None:
    schema = Schema("id", SCHEMA.features, Field("y", FieldType.FLOAT32))
    with pytest.raises(InvalidArgument, match="has no classes"):
        check_quality([QualityRule(ClassBalance(0.1), WARN)], schema)
    check_quality([QualityRule(ClassBalance(0.1), WARN)], SCHEMA)
    check_quality([QualityRule(Drift("", "", DriftMethod.KS, 0.1), WARN)], SCHEMA)
