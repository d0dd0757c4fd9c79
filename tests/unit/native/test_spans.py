from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from headrace.native import Spans
from headrace.native.spans import is_utf8
from headrace.native.xxh64 import xxh64

BYTES = st.one_of(st.binary(max_size=8), st.text(max_size=5).map(str.encode))


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(BYTES, BYTES)
def test_utf8_is_what_python_takes_for_it(before: bytes, data: bytes) -> None:
    buffer = np.frombuffer(before + data, np.uint8)
    assert is_utf8(buffer, len(before), len(buffer)) == is_text(data)


def test_every_lead_byte_is_judged_as_python_judges_it() -> None:
    for first in range(256):
        for second in (0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0):
            for rest in (b"", b"\x80", b"\xbf\xbf", b"\x80A", b"A"):
                data = bytes([first, second]) + rest
                assert is_utf8(np.frombuffer(data, np.uint8), 0, len(data)) == is_text(data), data


@given(st.lists(st.one_of(st.none(), st.text(max_size=5))), st.data())
def test_spans_are_the_strings_they_were_made_of(texts: list[str | None], data: st.DataObject) -> None:
    spans = Spans.of(None if text is None else text.encode() for text in texts)
    assert spans.to_arrow().to_pylist() == texts
    assert [spans[index] for index in range(len(spans))] == [(text or "").encode() for text in texts]
    indexes = data.draw(st.lists(st.integers(0, len(texts) - 1))) if texts else []
    taken = spans.take(np.array(indexes, np.int64)).to_arrow()
    assert taken.to_pylist() == [texts[index] for index in indexes]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_column_of_strings_of_either_kind_is_read_in_place(kind: pa.DataType) -> None:
    column = pa.chunked_array([["left out", "a", None], ["", "\u00e9", "bc"]], kind).slice(1)
    spans = Spans.from_arrow(column)
    assert [spans[index] for index in range(len(spans))] == [b"a", b"", b"", "\u00e9".encode(), b"bc"]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.int64()])
def test_a_column_that_is_laid_out_otherwise_is_refused(kind: pa.DataType) -> None:
    with pytest.raises(TypeError, match=f"of {kind}"):
        Spans.from_arrow(pa.chunked_array([pa.array(["1"]).cast(kind)]))


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(0, 3))
def test_xxh64_is_that_of_its_library(words: list[int], seed: int) -> None:
    array = np.array(words, np.uint64)
    assert xxh64(array, len(array), seed) == xxhash.xxh64_intdigest(array.tobytes(), seed)
