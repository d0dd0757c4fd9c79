from __future__ import annotations

from datetime import UTC, datetime, timedelta

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import errors
from headrace.errors import ErrorKind, FieldViolation, HeadraceError, InvalidArgument, one_line
from headrace.rpc import convert, deadline, paging
from headrace.rpc.errors import code_of, from_status, make_error, to_status

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HeadraceError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_the_way_there_and_back(kind: type[HeadraceError]) -> None:
    error = kind("A_REASON", "do this", fields=[FieldViolation("a.b", "wrong")], metadata={"k": "v"})
    returned = from_status(to_status(error))
    assert returned.kind is error.kind
    assert (returned.reason, returned.message) == ("A_REASON", "do this")
    assert (returned.fields, returned.metadata) == (error.fields, error.metadata)


def test_every_kind_has_its_code() -> None:
    assert {code_of(kind("R", "m")).name for kind in KINDS} == {kind.name for kind in ErrorKind}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.OUT_OF_RANGE, ErrorKind.INVALID_ARGUMENT),
        (grpc.StatusCode.CANCELLED, ErrorKind.UNAVAILABLE),
        (grpc.StatusCode.PERMISSION_DENIED, ErrorKind.INTERNAL),
        (grpc.StatusCode.NOT_FOUND, ErrorKind.NOT_FOUND),
    ],
)
def test_a_foreign_code_has_the_nearest_kind(code: grpc.StatusCode, kind: ErrorKind) -> None:
    assert make_error(code, code.name, "").kind is kind


def test_a_long_error_stays_under_what_clients_accept() -> None:
    error = InvalidArgument(
        "R",
        "m" * 10_000,
        fields=[FieldViolation(f"f{number}", "d" * 1000) for number in range(50)],
        metadata={f"k{number}": "v" * 1000 for number in range(50)},
    )
    status = to_status(error)
    assert status.ByteSize() + len(status.message) < 8192
    assert len(from_status(status).fields) >= 0


@given(st.lists(st.tuples(st.text(), st.integers(-(2**62), 2**62)), max_size=20), st.integers(1, 7))
def test_paging_gives_every_row_once(rows: list[tuple[str, int]], size: int) -> None:
    rows = sorted(set(rows))
    seen: list[tuple[str, int]] = []
    token = ""
    while True:
        after = paging.decode_token(token, str, int)
        rest = rows if after is None else [row for row in rows if row > after]
        page, token = paging.cut(rest[: size + 1], size, lambda row: row)
        seen += page
        if not token:
            break
    assert seen == rows


@pytest.mark.parametrize(
    "token", ["?", "e30", paging.encode_token(("a",)), paging.encode_token((1, "a")), "ÿÿ"]
)
def test_a_token_of_somewhere_else_is_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        paging.decode_token(token, str, int)
    assert caught.value.reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize(("requested", "size"), [(0, 50), (7, 7), (5000, 1000)])
def test_a_page_size_has_a_default_and_a_limit(requested: int, size: int) -> None:
    assert paging.page_size(requested) == size


def test_times_survive_the_way_there_and_back() -> None:
    moment = datetime(2026, 2, 28, 12, 30, 15, 123456, tzinfo=UTC)
    assert convert.from_timestamp(convert.to_timestamp(moment)) == moment
    assert convert.to_timestamp(None) is None
    with pytest.raises(ValueError, match="no time zone"):
        convert.to_timestamp(moment.replace(tzinfo=None))
    length = timedelta(days=2, microseconds=5)
    assert convert.from_duration(convert.to_duration(length)) == length
    assert convert.to_duration(None) is None


def test_a_deadline_only_ever_tightens() -> None:
    assert deadline.remaining() is None
    with deadline.bounded(10), deadline.bounded(60):
        left = deadline.remaining()
        assert left is not None
        assert left <= 10
        with deadline.unbounded():
            assert deadline.remaining() is None
        with deadline.bounded(None):
            assert deadline.remaining() is not None
    assert deadline.remaining() is None


def test_a_librarys_error_becomes_one_plain_line() -> None:
    error = OSError(
        "Generic S3 error\n   \x1b[31m↳\x1b[0m Error performing GET\n   500 Internal Server Error\n"
    )
    assert one_line(error) == "OSError: Generic S3 error ↳ Error performing GET 500 Internal Server Error"
