"""A trace as a waterfall for a terminal: who called whom, when, and for how long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.table import Table
from rich.text import Text

# Siblings of one name beyond this many are drawn as one line.
MANY = 3


@dataclass(frozen=True, slots=True)
class Span:
    """One span of a trace; ids in hexadecimal, `parent_span_id` empty for a root."""

    span_id: str
    parent_span_id: str
    service: str
    name: str
    start_time: datetime
    end_time: datetime
    status: str = "unset"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the waterfall: a span, or several siblings of one service and name."""

    depth: int
    service: str
    name: str
    count: int
    start: timedelta
    end: timedelta
    failed: bool

    @property
    def duration(self) -> timedelta:
        """From the first start to the last end."""
        return self.end - self.start


def lines(spans: Iterable[Span]) -> list[Line]:
    """Lay spans out depth-first, children by start time.

    Times count from the trace's first start. A span whose parent is not there is a root, so that a trace
    that is still arriving can be drawn.
    """
    by_id = {span.span_id: span for span in spans}
    if not by_id:
        return []
    children: dict[str, list[Span]] = defaultdict(list)
    for span in by_id.values():
        parent = span.parent_span_id if span.parent_span_id in by_id else ""
        children[parent].append(span)
    origin = min(span.start_time for span in by_id.values())
    result: list[Line] = []
    _lay_out([""], 0, children, origin, result)
    return result


def _lay_out(
    parents: Sequence[str],
    depth: int,
    children: dict[str, list[Span]],
    origin: datetime,
    result: list[Line],
) -> None:
    groups: dict[tuple[str, str], list[Span]] = defaultdict(list)
    for parent in parents:
        for span in children.get(parent, ()):
            groups[span.service, span.name].append(span)
    lots = [
        lot
        for group in groups.values()
        for lot in ([group] if len(group) > MANY else [[span] for span in group])
    ]
    for lot in sorted(lots, key=lambda lot: min(span.start_time for span in lot)):
        result.append(_line(lot, depth, origin))
        _lay_out([span.span_id for span in lot], depth + 1, children, origin, result)


def _line(lot: Sequence[Span], depth: int, origin: datetime) -> Line:
    return Line(
        depth=depth,
        service=lot[0].service,
        name=lot[0].name,
        count=len(lot),
        start=min(span.start_time for span in lot) - origin,
        end=max(span.end_time for span in lot) - origin,
        failed=any(span.status == "error" for span in lot),
    )


def duration_text(duration: timedelta) -> str:
    """A duration in the unit that a person would use."""
    seconds = duration.total_seconds()
    if seconds >= 1:
        return f"{seconds:.2f} s"
    if seconds >= 0.001:
        return f"{seconds * 1_000:.1f} ms"
    return f"{seconds * 1_000_000:.0f} µs"


def table(spans: Iterable[Span], *, bar_width: int = 16) -> Table:
    """Draw the waterfall with Rich."""
    drawn = lines(spans)
    drawing = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    drawing.add_column("service", no_wrap=True, min_width=19)
    drawing.add_column("span", no_wrap=True, overflow="ellipsis", ratio=1)
    drawing.add_column("time", justify="right", no_wrap=True, min_width=8)
    drawing.add_column("", no_wrap=True, min_width=bar_width)
    whole = max((line.end for line in drawn), default=timedelta(0))
    colours = _colours(line.service for line in drawn)
    for line in drawn:
        colour = "red" if line.failed else colours[line.service]
        count = f" ×{line.count}" if line.count > 1 else ""
        drawing.add_row(
            Text(line.service, colour),
            Text(" " * line.depth + short(line.name) + count, "bold red" if line.failed else ""),
            duration_text(line.duration),
            Text(bar(line, whole, bar_width), colour),
        )
    return drawing


def short(name: str) -> str:
    """An RPC's name without its package; other names as they are."""
    service, slash, method = name.partition("/")
    return f"{service.rpartition('.')[2]}/{method}" if slash else name


def bar(line: Line, whole: timedelta, width: int) -> str:
    """The span's place in the trace as a run of blocks; at least one, however short it was."""
    if not whole:
        return "█"
    start = min(int(line.start / whole * width), width - 1)
    length = max(1, round(line.duration / whole * width))
    return " " * start + "█" * min(length, width - start)


def _colours(services: Iterable[str]) -> dict[str, str]:
    palette = ("cyan", "green", "yellow", "magenta", "blue", "bright_cyan", "bright_green", "bright_magenta")
    distinct = list(dict.fromkeys(services))
    return {service: palette[index % len(palette)] for index, service in enumerate(distinct)}
