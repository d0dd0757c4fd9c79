from __future__ import annotations

import json
import math

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.ingestion.domain.decimals import to_double
from headrace.ingestion.domain.flat_json import FlatJsonReader, Kind
from headrace.native import Spans

THOROUGHLY = settings(max_examples=2000)


@THOROUGHLY
@given(st.integers(0, 2**64 - 1), st.integers(-400, 400))
@example(9007199254740993, 0)  # halfway between two doubles
@example(9007199254740995, 0)
@example(2**64 - 1, 0)
@example(1, 23)
@example(22250738585072011, -324)  # around the smallest normal double
@example(22250738585072014, -324)
@example(17976931348623157, 292)  # the largest
@example(17976931348623159, 292)
@example(3, -1)
@example(0, 400)
def test_a_number_is_the_nearest_double_or_is_left_to_others(digits: int, power: int) -> None:
    decided, double = to_double(np.uint64(digits), power)
    if decided:
        assert double == float(f"{digits}e{power}")


@THOROUGHLY
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_what_python_writes_is_read_as_it_was(value: float) -> None:
    column, read = read_one(json.dumps({"x": value}))
    if read:
        assert column == [value]
        assert math.copysign(1, column[0]) == math.copysign(1, value)
    # Only what is no normal double may be left to others.
    assert read or abs(value) < 1e-280 or abs(value) > 1e280


@THOROUGHLY
@given(st.from_regex(r"-?[0-9]{0,22}(\.[0-9]{0,22})?([eE][+-]?[0-9]{0,3})?", fullmatch=True))
def test_only_what_json_calls_a_number_is_read(text: str) -> None:
    column, read = read_one(f'{{"x": {text}}}')
    if read:
        assert column == [float(json.loads(text))]


def read_one(payload: str) -> tuple[list[float], bool]:
    rows = FlatJsonReader([("x", Kind.FLOAT)]).read(Spans.of([payload.encode()]))
    return rows.columns[0].to_pylist(), bool(rows.read[0])
