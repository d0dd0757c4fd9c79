from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.waterfall import Line, Span, bar, duration_text, lines, table

START = datetime(2026, 1, 1, tzinfo=UTC)


def span(span_id: str, parent: str = "", at: float = 0, to: float = 1, name: str = "work") -> Span:
    return Span(span_id, parent, "svc", name, START + timedelta(seconds=at), START + timedelta(seconds=to))


def shape(spans: list[Span]) -> list[tuple[int, str, int]]:
    return [(line.depth, line.name, line.count) for line in lines(spans)]


def test_children_stand_under_their_parent_by_start_time() -> None:
    spans = [
        span("c", "a", at=2, name="later"),
        span("b", "a", at=1, name="sooner"),
        span("a", name="root", to=3),
        span("d", "b", at=1, name="inner"),
    ]
    assert shape(spans) == [(0, "root", 1), (1, "sooner", 1), (2, "inner", 1), (1, "later", 1)]


def test_a_span_whose_parent_has_not_arrived_is_a_root() -> None:
    assert shape([span("b", "missing", name="orphan")]) == [(0, "orphan", 1)]


def test_many_alike_siblings_are_one_line_and_so_are_their_children() -> None:
    spans = [span("root", name="root")]
    for index in range(10):
        spans.append(span(f"s{index}", "root", at=index, to=index + 1, name="call"))
        spans.append(span(f"c{index}", f"s{index}", at=index, to=index + 1, name="answer"))
    assert shape(spans) == [(0, "root", 1), (1, "call", 10), (2, "answer", 10)]


def test_a_loop_of_parents_does_not_hang() -> None:
    assert lines([span("a", "b"), span("b", "a")]) == []


def test_nothing_is_drawn_of_nothing() -> None:
    assert table([]).row_count == 0


@given(start=st.floats(0, 100), length=st.floats(0, 100), extra=st.floats(0, 100), width=st.integers(1, 200))
def test_a_bar_is_never_empty_and_never_too_long(
    start: float, length: float, extra: float, width: int
) -> None:
    end = start + length
    line = Line(0, "svc", "name", 1, timedelta(seconds=start), timedelta(seconds=end), failed=False)
    drawn = bar(line, timedelta(seconds=end + extra), width)
    assert "█" in drawn
    assert len(drawn) <= width


def test_durations_read_as_people_say_them() -> None:
    texts = [duration_text(timedelta(seconds=seconds)) for seconds in (2.5, 0.0123, 0.000_045)]
    assert texts == ["2.50 s", "12.3 ms", "45 µs"]
