from __future__ import annotations

import hashlib

from hypothesis import example, given
from hypothesis import strategies as st

from headrace.native import Spans
from headrace.native.blake2b import blake2b_64


@given(st.lists(st.binary(max_size=300)))
@example([b"", b"a" * 127, b"a" * 128, b"a" * 129, b"a" * 256, b"a" * 257])
def test_digests_are_hashlibs(strings: list[bytes]) -> None:
    expected = [hashlib.blake2b(text, digest_size=8).digest() for text in strings]
    assert blake2b_64(Spans.of(strings)).astype(">u8").tobytes() == b"".join(expected)
