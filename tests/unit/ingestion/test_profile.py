from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.ingestion.domain.columnar import stored_schema
from headrace.ingestion.domain.profile import (
    EXACT_VALUES,
    RANK_ERROR,
    FieldProfile,
    Moments,
    Profile,
    extended,
    is_extensible,
    quantiles,
    shares_up_to,
)
from headrace.ingestion.domain.schema import Field, FieldType, Role, Schema

SCHEMA = Schema(
    "id",
    (
        Field("weight", FieldType.FLOAT64, nullable=True),
        Field("grade", FieldType.INT16, nullable=True),
        Field("site", FieldType.STRING, nullable=True),
    ),
    Field("sick", FieldType.BOOL, nullable=True),
)
LIMIT = 1e100

Row = tuple[float | None, int | None, str | None, bool | None]

rows_of_any_kind = st.lists(
    st.tuples(
        st.none() | st.floats(-LIMIT, LIMIT),
        st.none() | st.integers(-(2**15), 2**15 - 1),
        st.none() | st.text(st.characters(codec="utf-8"), max_size=3),
        st.none() | st.booleans(),
    ),
    max_size=40,
)


def batch_of(rows: Sequence[Row]) -> pa.RecordBatch:
    values = [
        {"id": str(number), "weight": row[0], "grade": row[1], "site": row[2], "sick": row[3]}
        for number, row in enumerate(rows)
    ]
    return pa.RecordBatch.from_pylist(values, schema=stored_schema(SCHEMA))


def field_of(profile: Profile, name: str) -> FieldProfile:
    field = profile.field(name)
    assert field is not None
    return field


def profiled(*values: float | None) -> FieldProfile:
    """The profile of one number's values."""
    batch = batch_of([(value, None, None, None) for value in values])
    return field_of(extended(None, SCHEMA, [batch]), "weight")


@given(rows_of_any_kind, st.lists(st.integers(0, 40), max_size=4), st.booleans())
def test_the_profile_of_parts_is_that_of_all_rows(rows: list[Row], ends: list[int], stored: bool) -> None:
    starts = [0, *sorted(min(end, len(rows)) for end in ends)]
    parts = [batch_of(rows[start:end]) for start, end in zip(starts, [*starts[1:], len(rows)], strict=True)]
    profile: Profile | None = None
    if stored:
        # As versions do, each from the one before.
        for part in parts:
            profile = extended(profile, SCHEMA, [part])
    else:
        profile = extended(None, SCHEMA, parts)
    assert profile is not None
    assert profile.row_count == len(rows)
    for index, name in enumerate(("weight", "grade", "site", "sick")):
        values = [row[index] for row in rows if row[index] is not None]
        field = field_of(profile, name)
        assert (field.count, field.null_count) == (len(values), len(rows) - len(values))
        if name != "weight":
            counted = field.values
            assert counted is not None
            assert counted.counts == Counter(json.dumps(value, ensure_ascii=False) for value in values)
            assert counted.error == 0
        if name in {"weight", "grade"}:
            assert_moments(field.moments, [Fraction(value) for value in values])  # type: ignore[arg-type]


def assert_moments(moments: Moments | None, values: list[Fraction]) -> None:
    """Exact but for rounding, which is relative to the largest number."""
    assert moments is not None
    assert moments.count == len(values)
    if not values:
        return
    assert (moments.min, moments.max) == (float(min(values)), float(max(values)))
    largest = float(max(map(abs, values)))
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / len(values)
    assert moments.mean == pytest.approx(float(mean), rel=0, abs=1e-13 * largest + 1e-300)
    assert moments.deviation == pytest.approx(
        math.sqrt(float(variance)), rel=1e-9, abs=1e-13 * largest + 1e-300
    )


def test_numbers_at_the_edge_of_doubles_have_a_mean_and_no_finite_deviation() -> None:
    moments = profiled(1.7e308, -1.7e308, 1.7e308, 1.7e308).moments
    assert moments is not None
    assert moments.mean == pytest.approx(0.85e308)
    assert math.isinf(moments.deviation)
    assert math.isinf(moments.merge(moments).deviation)


def test_quantiles_are_within_the_stated_error_however_the_rows_were_cut() -> None:
    random = np.random.default_rng(7)
    numbers = np.concatenate([random.normal(size=30_000), random.exponential(50, size=30_000)])
    random.shuffle(numbers)
    profile: Profile | None = None
    for part in np.array_split(numbers, 37):
        batch = pa.record_batch({"weight": pa.array(part)})
        profile = extended(profile, SCHEMA, [batch])
    assert profile is not None
    weight, ordered = field_of(profile, "weight"), np.sort(numbers)
    # 99 % of the ranks keep the error itself; five standard deviations are twice it.
    for rank, value in zip((0.05, 0.5, 0.95), quantiles(weight, (0.05, 0.5, 0.95)), strict=True):
        assert abs(np.searchsorted(ordered, value) / len(ordered) - rank) < 2 * RANK_ERROR
    points = [-1.0, 0.0, 1.0, 50.0]
    for point, share in zip(points, shares_up_to(weight, points), strict=True):
        true_share = np.searchsorted(ordered, point, side="right") / len(ordered)
        assert abs(share - true_share) < 2 * RANK_ERROR


def test_integers_of_many_values_are_numbers_and_texts_of_many_values_have_frequent_ones() -> None:
    many = EXACT_VALUES + 1
    schema = Schema("id", (Field("n", FieldType.INT32), Field("s", FieldType.STRING)), SCHEMA.label)
    distinct = pa.record_batch({"n": pa.array(range(many), pa.int32()), "s": [str(n) for n in range(many)]})
    frequent = pa.record_batch({"n": pa.array([1] * 5000, pa.int32()), "s": ["often"] * 5000})
    for batches in ([distinct, frequent], [frequent, distinct]):
        profile = extended(extended(None, schema, batches[:1]), schema, batches[1:])
        assert field_of(profile, "n").values is None
        texts = field_of(profile, "s").values
        assert texts is not None
        assert texts.error > 0
        assert next(iter(texts.most_frequent(3))) == '"often"'
        assert 5000 - texts.error <= texts.counts['"often"'] <= 5000
        assert texts.error <= (many + 5000) / EXACT_VALUES
    fewer = extended(None, schema, [distinct.slice(1), distinct.slice(1)])
    exact = field_of(fewer, "n").values
    assert exact is not None
    assert len(exact.counts) == EXACT_VALUES
    assert set(exact.counts.values()) == {2}


def test_of_the_key_values_are_counted_and_never_kept() -> None:
    batch = batch_of([(1.0, 1, "a", True)] * 3)
    key = field_of(extended(None, SCHEMA, [batch]), "id")
    assert (key.count, key.values, key.quantiles, key.moments) == (3, None, None, None)


def test_a_field_that_came_later_is_null_in_rows_before() -> None:
    narrow = Schema("id", SCHEMA.features[:1], SCHEMA.label)
    first = extended(None, narrow, [pa.record_batch({"id": ["a", "b"], "weight": [1.0, None]})])
    second = extended(first, SCHEMA, [batch_of([(2.0, 5, "x", True)])])
    grade = field_of(second, "grade")
    assert (grade.count, grade.null_count, grade.null_share) == (1, 2, 2 / 3)
    weight = field_of(second, "weight")
    assert (weight.count, weight.null_count) == (2, 1)


AS_ATTRIBUTES = Schema(
    "id", SCHEMA.features[:1], SCHEMA.label, tuple(replace(f, role=Role.IGNORED) for f in SCHEMA.features[1:])
)


def test_what_was_an_attribute_is_described_wholly_or_not_at_all() -> None:
    batch = batch_of([(1.0, 5, "x", True)])
    before = extended(None, AS_ATTRIBUTES, [batch])
    assert is_extensible(before, AS_ATTRIBUTES)
    assert not is_extensible(before, SCHEMA)
    after = extended(before, SCHEMA, [batch])
    grade, site = field_of(after, "grade"), field_of(after, "site")
    assert (grade.count, grade.moments, grade.quantiles, grade.values) == (2, None, None, None)
    assert (site.count, site.values) == (2, None)
    assert not is_extensible(after, SCHEMA)
    assert is_extensible(extended(None, SCHEMA, [batch]), SCHEMA)


def test_an_attribute_that_was_null_everywhere_can_become_a_feature() -> None:
    before = extended(None, AS_ATTRIBUTES, [batch_of([(1.0, None, None, True)])])
    assert is_extensible(before, SCHEMA)
    grade = field_of(extended(before, SCHEMA, [batch_of([(1.0, 5, "x", True)])]), "grade")
    assert grade.moments is not None
    assert (grade.count, grade.null_count, grade.moments.count) == (1, 1, 1)


def test_a_sketch_of_no_numbers_has_no_quantiles_and_no_shares() -> None:
    empty = replace(profiled(None), count=5)
    assert (quantiles(empty, (0.5,)), shares_up_to(empty, [1.0])) == ([], [])


def test_long_texts_are_counted_by_their_beginning_and_a_digest() -> None:
    texts = ["x" * 100_000, "x" * 100_001, "x" * 100_001, "x" * 64]
    batch = batch_of([(None, None, text, None) for text in texts])
    counted = field_of(extended(None, SCHEMA, [batch]), "site").values
    assert counted is not None
    assert sorted(counted.counts.values()) == [1, 1, 2]
    assert counted.counts[f'"{"x" * 64}"'] == 1
    for text in counted.counts:
        assert len(json.loads(text)) == 64
        assert text.startswith(f'"{"x" * 47}')
