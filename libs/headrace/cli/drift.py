"""`headrace drift`: whether a deployment is still asked, and answers, what it was trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from headrace.cli.output import (
    Column,
    Format,
    OutputOption,
    cell,
    console,
    field,
    rows_table,
    show_document,
)
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.api.inference.v1 import drift_pb2 as api
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient

# The worst ones, unless all are asked for.
SHOWN: Final = 20
TESTS: Final = {
    "KOLMOGOROV_SMIRNOV": "KS",
    "CHI_SQUARE": "chi-square",
    "MISSING": "missing",
}
STYLES: Final = {"DRIFTING": "bold red", "SUSPECT": "yellow", "CALM": "green"}


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(drift)


def drift(
    deployment: Annotated[str, typer.Argument(help="A deployment's name.")],
    every: Annotated[bool, typer.Option("--all", "-a", help="All columns, not only the worst ones.")] = False,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Compare what a deployment is asked, and answers, with what its version was trained on."""
    from headrace.api.inference.v1 import drift_pb2 as api

    async def command(client: HeadraceClient) -> None:
        from headrace.cli.plain import plain

        found = await client.drift.GetDrift(api.GetDriftRequest(deployment=deployment))
        if output is Format.TABLE:
            _show(found, every=every)
        else:
            show_document(plain(found), output)

    run(data, command)


def _show(found: api.Drift, *, every: bool) -> None:
    from headrace.cli.plain import plain

    row = plain(found)
    trained = f" trained on {row['dataset']}/{row['dataset_version']}" if row["dataset_version"] else ""
    state = str(row["state"])
    console.print(
        Text.assemble(
            (f"{row['deployment']} version {row['model_version']}", "bold"),
            f"{trained}  ",
            (state, STYLES.get(state, "")),
        )
    )
    if row["message"]:
        console.print(Text(cell(row["message"])), soft_wrap=True)
    if found.HasField("window"):
        _show_window(found, every=every)
    for episode in row["episodes"] if isinstance(row["episodes"], list) else []:
        assert isinstance(episode, dict)
        console.print(Text(_episode(episode)), soft_wrap=True)


def _show_window(found: api.Drift, *, every: bool) -> None:
    from headrace.cli.plain import plain

    window = found.window
    begin, end = window.begin_time.ToDatetime(), window.end_time.ToDatetime()
    console.print(
        f"window of {window.requests} requests, {window.rows} rows, "
        f"{begin:%Y-%m-%d %H:%M:%S} to {end:%H:%M:%S} UTC"
    )
    worst = sorted(window.findings, key=lambda one: (not one.drifts, -one.psi))
    shown = worst if every else worst[:SHOWN]
    limits: dict[str, Plain] = {"min_psi": found.spec.min_psi, "alpha": 1 - found.spec.confidence}
    if shown:
        console.print(rows_table([{**plain(one), **limits} for one in shown], COLUMNS))
    if len(shown) < len(worst):
        console.print(f"{len(worst) - len(shown)} more, none of them worse; --all shows them")


def _episode(row: dict[str, Plain]) -> str:
    columns = row["columns"]
    names = cell(columns[:5]) + (", ..." if len(columns) > 5 else "") if isinstance(columns, list) else "-"
    over = f"to {row['end_time']}, {cell(row['end_reason']).lower()}" if row["end_time"] else "and goes on"
    return f"version {row['model_version']} drifted in {names} from {row['begin_time']} {over}"


def _p_value(row: dict[str, Plain]) -> str:
    return f"{row['p_value']:.2g}"


def _number(name: str) -> Column:
    return Column(name, lambda row: f"{row[name]:.3f}", right=True)


# Narrow enough for a terminal of eighty characters.
COLUMNS: Final = (
    field("column", "column"),
    Column("test", lambda row: TESTS.get(str(row["test"]), str(row["test"]))),
    _number("statistic"),
    Column("p-value", _p_value, right=True),
    Column("at most", lambda row: f"{row['alpha']:.2g}", right=True),
    _number("psi"),
    Column("at least", lambda row: f"{row['min_psi']:g}", right=True),
    Column("verdict", lambda row: "drifts" if row["drifts"] else "-"),
)
