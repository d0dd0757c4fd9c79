"""How good live answers are, by version and segment, and the true labels that say so: quality, feedback."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from headrace.cli.output import (
    Column,
    Format,
    OutputOption,
    console,
    printable,
    rows_table,
    show_document,
)
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.api.inference.v1 import inference_pb2 as api
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient

# What the interval that is shown belongs to comes first.
METRICS: Final = ("accuracy", "recall", "precision", "mae", "mse")
UNNAMED: Final = "(none)"


class By(enum.StrEnum):
    """What answers are told apart by."""

    VERSION = "version"
    SEGMENT = "segment"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(quality)
    app.command()(feedback)


def quality(
    deployment: Annotated[str, typer.Argument(help="A deployment's name.")],
    by: Annotated[By | None, typer.Option(help="Show this table alone.")] = None,
    version: Annotated[int, typer.Option(min=0, help="Only this version's answers; 0: all.")] = 0,
    segments: Annotated[
        int, typer.Option(min=0, max=200, help="How many segments, the largest; 0: 50. The rest is one.")
    ] = 0,
    min_labels: Annotated[
        int, typer.Option(min=0, help="Labels that a segment needs to be compared; 0: 30.")
    ] = 0,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Show how good live answers are, by the true labels that have come, and for whom they are worse."""
    from headrace.api.inference.v1 import inference_pb2 as api

    async def command(client: HeadraceClient) -> None:
        from headrace.cli.plain import plain

        request = api.GetQualityRequest(
            deployment=deployment, version=version, max_segments=segments, min_labels=min_labels
        )
        found = await client.inference.GetQuality(request)
        if output is Format.TABLE:
            _show(found, by)
        else:
            show_document(plain(found), output)

    run(data, command)


def _show(found: api.Quality, by: By | None) -> None:
    console.print(
        Text.assemble(
            (found.deployment, "bold"),
            f"  {found.prediction_count:,} predictions, {found.feedback_count:,} with a true label",
        )
    )
    named = [name for name in METRICS if name in found.metrics]
    if by is not By.SEGMENT and found.versions:
        rows = [_row(str(one.version), one) for one in found.versions]
        console.print(rows_table(rows, _columns("version", named)))
    if by is By.VERSION:
        return
    if not found.segments:
        if by is By.SEGMENT:
            console.print("no request named a segment")
        return
    single = sum(not one.other and one.segment != "" for one in found.segments)
    rest = found.segment_count - single
    console.print(
        rows_table([_row(_name(one, rest), one) for one in found.segments], _columns("segment", named))
    )
    if any(one.segment == "?" for one in found.segments):
        console.print("?: what these requests named is no text of at most 64 bytes", style="yellow")
    for gap in found.gaps:
        console.print(_gap(gap), soft_wrap=True)
    if not found.gaps:
        console.print(f"no gap: fewer than two segments have {found.min_labels} labels")


def _name(one: api.Quality.PerSegment, rest: int) -> str:
    return f"other ({rest:,} more)" if one.other else printable(one.segment) or UNNAMED


def _row(name: str, one: api.Quality.PerVersion | api.Quality.PerSegment) -> dict[str, Plain]:
    main = next((metric for metric in METRICS if metric in one.intervals), "")
    within = one.intervals[main] if main else None
    return {
        "name": name,
        "predictions": f"{one.prediction_count:,}",
        "labels": f"{one.feedback_count:,}",
        "within": f"{_number(within.low)}-{_number(within.high)}" if within else "-",
        **{metric: _number(one.metrics[metric]) for metric in one.metrics},
    }


def _columns(heading: str, metrics: Sequence[str]) -> list[Column]:
    def shown(name: str) -> Column:
        return Column(name, lambda row: str(row.get(name, "-")), right=True)

    first, *others = (shown(name) for name in metrics) if metrics else (None,)
    return [
        Column(heading, lambda row: str(row["name"]), right=heading == "version"),
        shown("predictions"),
        shown("labels"),
        *([first, Column("95 %", lambda row: str(row["within"])), *others] if first else []),
    ]


def _gap(gap: api.Quality.Gap) -> Text:
    said = (
        f"{gap.metric}: {printable(gap.worst)} {_number(gap.worst_value)} is worse than "
        f"{printable(gap.best)} {_number(gap.best_value)} by {_number(gap.value)} "
        f"(95 %: {_number(gap.low)} to {_number(gap.high)})"
    )
    return Text(said, "bold red") if gap.certain else Text(f"{said}, which may be chance")


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.4g}"


def feedback(
    deployment: Annotated[str, typer.Argument(help="The deployment that answered.")],
    labels: Annotated[
        list[str] | None,
        typer.Argument(help="True labels, ID=LABEL: the prediction's id, and a number or a text."),
    ] = None,
    file: Annotated[
        str,
        typer.Option(
            "--file", "-f", help='JSON lines: {"prediction_id": ..., "number" or "text": ...}; - reads stdin.'
        ),
    ] = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Store true labels of predictions, over gRPC; `headrace quality` shows what follows."""
    given = [_label(text) for text in labels or ()] + (_read(file) if file else [])
    if not given:
        raise typer.BadParameter("name labels, ID=LABEL, or a file of them", param_hint="LABELS")

    async def command(client: HeadraceClient) -> None:
        joined = await client.submit_labels(deployment, given)
        waiting = len(given) - joined
        if output is Format.TABLE:
            rest = f", {waiting} waiting for predictions that are not in the log yet" if waiting else ""
            console.print(f"{len(given)} labels stored: {joined} joined{rest}")
        else:
            show_document({"stored": len(given), "joined": joined}, output)

    run(data, command)


def _label(text: str) -> api.TrueLabel:
    from headrace.api.inference.v1 import inference_pb2 as api

    prediction_id, equals, label = text.rpartition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not ID=LABEL", param_hint="LABELS")
    try:
        number = json.loads(label, parse_int=float)
    except ValueError:
        number = None
    if isinstance(number, float):
        return api.TrueLabel(prediction_id=prediction_id, number=number)
    return api.TrueLabel(prediction_id=prediction_id, text=label)


def _read(file: str) -> list[api.TrueLabel]:
    from google.protobuf import json_format

    from headrace.api.inference.v1 import inference_pb2 as api

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--file") from error
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                found.append(json_format.Parse(line, api.TrueLabel()))
            except json_format.ParseError as error:
                raise typer.BadParameter(f"line {number}: {error}", param_hint="--file") from error
    return found
