"""Profiles of dataset versions, drawn for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.ingestion.v1 import quality_pb2 as quality
from headrace.api.ingestion.v1 import versions_pb2 as versions
from headrace.cli.output import console
from headrace.cli.plain import enum_text

_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_SHOWN_VALUES: Final = 4
_VALUE_CHARACTERS: Final = 12
_HISTOGRAM_WIDTH: Final = 16
_MEDIAN: Final = 0.5
# Population stability: hardly any change, some, much.
_SOME_DRIFT: Final = 0.1
_MUCH_DRIFT: Final = 0.25
_VERDICT_STYLES: Final = {
    quality.VERDICT_PASS: "green",
    quality.VERDICT_WARN: "yellow",
    quality.VERDICT_BLOCK: "bold red",
}


def show_version(version: ingestion.DatasetVersion) -> None:
    """What a version is, in a few lines."""
    marks = [*version.tags, *(["pinned"] if version.pinned else [])]
    console.print(
        Text.assemble(
            (f"{version.dataset} version {version.version}", "bold"),
            f"  {version.row_count} rows, {version.content_hash[:12]}",
            f", cut {version.create_time.ToDatetime():%Y-%m-%d %H:%M:%S} UTC",
            (f"  {' '.join(marks)}" if marks else "", "cyan"),
        )
    )
    if version.erased_rows:
        console.print(
            Text(f"erased rows: {version.erased_rows}; its content hash no longer reproduces", "yellow")
        )
    for finding in version.findings:
        style = _VERDICT_STYLES.get(finding.verdict, "")
        verdict = enum_text(quality.Verdict.DESCRIPTOR, finding.verdict).lower()
        console.print(Text.assemble((f"{verdict:<6}", style), f"{finding.rule}  {finding.message}"))


def show_splits(counts: ingestion.SplitCounts) -> None:
    """A row for each split, with its rows of each class."""
    by_time = counts.split.by == ingestion.SPLIT_BY_TIME
    begins = {}
    if counts.HasField("validation_begin_time"):
        begins["validation"] = str(counts.validation_begin_time.ToDatetime())
    if counts.HasField("test_begin_time"):
        begins["test"] = str(counts.test_begin_time.ToDatetime())
    classes = [item.value for item in counts.counts[0].classes]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("by time" if by_time else "by key")
    for heading in ("rows", "share", "no label", *classes):
        table.add_column(heading, justify="right", overflow="fold")
    if by_time:
        table.add_column("from (UTC)")
    total = sum(count.row_count for count in counts.counts)
    for count in counts.counts:
        table.add_row(
            count.split,
            str(count.row_count),
            f"{count.row_count / total:.1%}" if total else "-",
            str(count.unlabelled_count),
            *(str(item.row_count) for item in count.classes),
            *([begins.get(count.split, "-")] if by_time else []),
        )
    console.print(table)


def show_profile(profile: versions.Profile) -> None:
    """A row for each field."""
    table = _table("field", "type", "nulls", "min", "median", "max", "mean ± deviation", "distribution")
    for field in profile.fields:
        numbers = field.numbers
        shown = ["-"] * 4
        if field.HasField("numbers"):
            shown = [
                _number(numbers.min),
                _number(next(item.value for item in numbers.quantiles if item.rank == _MEDIAN)),
                _number(numbers.max),
                f"{_number(numbers.mean)} ± {_number(numbers.deviation)}",
            ]
        table.add_row(field.name, _type(field), _null_share(field), *shown, _distribution(field))
    console.print(table)


def show_diff(diff: versions.VersionDiff) -> None:
    """A row for each field, with both versions' numbers."""
    base, other = diff.base, diff.other
    console.print(
        Text.assemble(
            (f"{base.dataset} version {base.version} → {other.version}", "bold"),
            f"  {base.row_count} → {other.row_count} rows",
            f", schema {base.schema_version} → {other.schema_version}",
        )
    )
    table = _table("field", "type", "nulls", "mean", "deviation", "psi", "ks", "distribution")
    for field in diff.fields:
        name = Text(field.name)
        if not field.HasField("base"):
            name.append(" added", "green")
        elif not field.HasField("other"):
            name.append(" removed", "red")
        table.add_row(
            name,
            _pair(field, _type),
            _pair(field, _null_share),
            _pair(field, lambda one: _number(one.numbers.mean) if one.HasField("numbers") else "-"),
            _pair(field, lambda one: _number(one.numbers.deviation) if one.HasField("numbers") else "-"),
            _psi(field),
            f"{field.ks:.3f}" if field.HasField("ks") else "-",
            _distributions(field),
        )
    console.print(table)


def blocks(shares: Sequence[float]) -> str:
    """A histogram in block characters, the fullest bin as high as can be; an empty bin is a space."""
    highest = max(shares, default=0)
    return "".join(
        _BLOCKS[min(len(_BLOCKS) - 1, int(share / highest * len(_BLOCKS)))] if share > 0 else " "
        for share in shares
    )


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    *narrow, distribution = headings
    for heading in narrow:
        table.add_column(heading, overflow="fold")
    # A histogram is read in one piece.
    table.add_column(distribution, overflow="fold", min_width=_HISTOGRAM_WIDTH)
    return table


def _type(field: versions.FieldProfile) -> str:
    return enum_text(ingestion.FieldType.DESCRIPTOR, field.type).lower()


def _shortened(text: str) -> str:
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 1]}…"


def _null_share(field: versions.FieldProfile) -> str:
    rows = field.count + field.null_count
    return f"{field.null_count / rows:.1%}" if rows and field.null_count else "-"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _distribution(field: versions.FieldProfile) -> str:
    """Values with their shares where they are few, else a histogram, else the most frequent ones."""
    few = 0 < len(field.top_values) <= _SHOWN_VALUES
    if field.HasField("numbers") and not few:
        return blocks(field.numbers.histogram)
    shown = [
        f"{_shortened(item.value)} {item.count / field.count:.0%}"
        for item in field.top_values[:_SHOWN_VALUES]
    ]
    return ", ".join([*shown, *([] if few or not shown else ["…"])]) or "-"


def _distributions(field: versions.FieldDiff) -> str:
    """Both versions' distributions, histograms on one scale."""
    few = all(0 < len(one.top_values) <= _SHOWN_VALUES for one in (field.base, field.other))
    if field.base_histogram and not few:
        return f"{blocks(field.base_histogram)}\n{blocks(field.other_histogram)}"
    return _pair(field, _distribution)


def _pair(field: versions.FieldDiff, text: Callable[[versions.FieldProfile], str]) -> str:
    """Both versions' texts, one above the other where they differ."""
    shown = [text(one) for one in (field.base, field.other) if one.name]
    return "\n".join(dict.fromkeys(shown))


def _psi(field: versions.FieldDiff) -> Text:
    if not field.HasField("psi"):
        return Text("-")
    style = "bold red" if field.psi >= _MUCH_DRIFT else "yellow" if field.psi >= _SOME_DRIFT else ""
    return Text(f"{field.psi:.3f}", style)
