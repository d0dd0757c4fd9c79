"""`headrace explain`: which inputs moved an answer."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from headrace.cli.output import Format, OutputOption, console, printable, show_document
from headrace.cli.session import DEFAULT_DATA, DataOption, run
from headrace.errors import InvalidArgument

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.api.inference.v1 import inference_pb2 as api
    from headrace.client import HeadraceClient
    from headrace.client.explaining import Baseline
    from headrace.client.inference_protocol import Row

# A bar's half: to the left what speaks against the answer, to the right what speaks for it.
_HALF_WIDTH: Final = 12
_VALUE_CHARACTERS: Final = 24


class Method(StrEnum):
    """How it is found."""

    AUTO = "auto"
    INTEGRATED_GRADIENTS = "integrated-gradients"
    SHAPLEY_SAMPLING = "shapley-sampling"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(explain)


def explain(
    deployment: Annotated[str, typer.Argument(help="The deployment whose answers to explain.")],
    rows: Annotated[
        str, typer.Option("--data-json", "-d", help="Rows of features: '[[1.0, \"red\"], ...]'.")
    ] = "",
    prediction: Annotated[
        str, typer.Option(help="Instead of rows, a prediction in the log, by its id.")
    ] = "",
    version: Annotated[
        int, typer.Option(min=0, help="A model version; 0: the one that answered, or has the most traffic.")
    ] = 0,
    baseline: Annotated[
        str, typer.Option(help="What to compare with: training, zero, or a row of features.")
    ] = "training",
    answer_class: Annotated[
        str, typer.Option("--class", help="The class to explain, instead of each row's most probable.")
    ] = "",
    method: Annotated[
        Method, typer.Option(help="auto: gradients where the model has them, else sampling.")
    ] = Method.AUTO,
    evaluations: Annotated[
        int, typer.Option(min=0, help="Rows that the model may answer for it; 0: as the service likes.")
    ] = 0,
    patches: Annotated[
        int, typer.Option(min=0, max=64, help="Parts of an image's height and width; 0: 8.")
    ] = 0,
    top: Annotated[int, typer.Option(min=1, help="Show so many features, the largest amounts first.")] = 12,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds; what has been found by then is shown.")
    ] = 30.0,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Show which features moved a model's answers to rows, or to a prediction in the log."""
    if bool(rows) == bool(prediction):
        raise typer.BadParameter("give either --data-json or --prediction")

    async def command(client: HeadraceClient) -> None:
        from headrace.cli.plain import plain

        explanation = await client.explain(
            deployment,
            _rows(rows, "--data-json") if rows else (),
            prediction=prediction,
            version=version,
            method=_METHODS[method],
            baseline=_baseline(baseline),
            answer_class=answer_class,
            max_evaluations=evaluations,
            patches=patches,
            timeout=timeout,
        )
        if output is not Format.TABLE:
            show_document(plain(explanation), output)
            return
        for number, row in enumerate(explanation.rows, start=1):
            _show_row(explanation, row, number, top)

    run(data, command)


_METHODS: Final = {
    Method.AUTO: None,
    Method.INTEGRATED_GRADIENTS: "integrated_gradients",
    Method.SHAPLEY_SAMPLING: "shapley_sampling",
}


def _rows(text: str, option: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise InvalidArgument("INVALID_DATA", f"{option} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise InvalidArgument("INVALID_DATA", f"{option} is no list of rows")
    return rows if rows and isinstance(rows[0], list) else [rows]


def _baseline(text: str) -> Baseline:
    if text in ("training", "zero"):
        return text
    rows = _rows(text, "--baseline")
    if len(rows) > 1:
        raise InvalidArgument("INVALID_DATA", "--baseline is training, zero, or one row")
    return rows[0]


def _show_row(explanation: api.Explanation, row: api.RowExplanation, number: int, top: int) -> None:
    from headrace.api.inference.v1 import inference_pb2 as api
    from headrace.cli.plain import enum_text

    what = f"class {row.answer_class}" if row.answer_class else row.output
    console.print(
        Text.assemble(
            (f"row {number}  ", "dim"),
            (printable(what), "bold"),
            f"  {row.answer:.4g}, and {row.baseline_answer:.4g} of the baseline",
        )
    )
    console.print(_table(row, top))
    method = enum_text(api.ExplanationMethod.DESCRIPTOR, row.method).lower().replace("_", " ")
    baseline = enum_text(api.BaselineKind.DESCRIPTOR, explanation.baseline).lower()
    console.print(
        Text(
            f"version {explanation.version}, {method}, baseline {baseline}, {row.evaluations:,} evaluations, "
            f"unexplained {row.completeness_gap:.2g}",
            "dim",
        ),
        soft_wrap=True,
    )
    if row.stopped == api.EXPLANATION_STOP_DEADLINE:
        console.print(Text("Time was up: errors are larger than 1 %. A larger --timeout helps.", "yellow"))
    elif row.stopped == api.EXPLANATION_STOP_EVALUATIONS:
        console.print(Text("Errors are larger than 1 %. More --evaluations help.", "yellow"))


def _table(row: api.RowExplanation, top: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("feature", "value", "baseline"):
        table.add_column(heading, overflow="fold")
    for heading in ("amount", "± error"):
        table.add_column(heading, justify="right")
    table.add_column("against │ for", width=2 * _HALF_WIDTH + 1, justify="center")
    ordered = sorted(row.attributions, key=lambda one: -abs(one.amount))
    largest = abs(ordered[0].amount) if ordered else 0.0
    for one in ordered[:top]:
        table.add_row(
            Text(printable(one.feature)),
            Text(_shortened(one.value)),
            Text(_shortened(one.baseline_value)),
            f"{one.amount:+.4f}",
            f"{one.error:.1g}" if one.error else "",
            _bar(one.amount, largest),
        )
    rest = ordered[top:]
    if rest:
        amount = sum(one.amount for one in rest)
        table.add_row(Text(f"{len(rest)} others", "dim"), "", "", f"{amount:+.4f}", "", "")
    return table


def _bar(amount: float, largest: float) -> Text:
    halves = round(2 * _HALF_WIDTH * abs(amount) / largest) if largest else 0
    if amount < 0:
        bar = "▐" * (halves % 2) + "█" * (halves // 2)
        return Text.assemble((bar.rjust(_HALF_WIDTH), "red"), "│", " " * _HALF_WIDTH)
    bar = "█" * (halves // 2) + "▌" * (halves % 2)
    return Text.assemble(" " * _HALF_WIDTH, "│", (bar.ljust(_HALF_WIDTH), "green"))


def _shortened(text: str) -> str:
    shown = printable(text) or "-"
    return shown if len(shown) <= _VALUE_CHARACTERS else f"{shown[: _VALUE_CHARACTERS - 1]}…"
