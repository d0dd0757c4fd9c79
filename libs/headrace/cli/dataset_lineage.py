"""`headrace dataset lineage`: which models stand on a dataset's versions, and how long their rows stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from headrace.cli.dataset import NameArgument, dataset_app
from headrace.cli.output import Column, Format, OutputOption, cell, console, field, show_rows
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient
    from headrace.client.lineage import TrainedModel

_WITH_TIME = ("forgotten", "until")


def register(_app: typer.Typer) -> None:
    """Add this module's command."""
    dataset_app.command()(lineage)


def lineage(
    name: NameArgument,
    live: Annotated[bool, typer.Option("--live", help="Those alone that an alias or traffic has.")] = False,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """List the models that were trained on a dataset, and how long the rows of its versions stay."""

    async def command(client: HeadraceClient) -> None:
        from headrace.client.lineage import trained_models

        found = [model for model in await trained_models(client, name) if model.live or not live]
        show_rows([_row(model) for model in found], COLUMNS, output)
        if output is Format.TABLE:
            _warn(name, found)

    run(data, command)


def _row(model: TrainedModel) -> dict[str, Plain]:
    return {
        "model": model.model,
        "version": model.version,
        "aliases": [*model.aliases],
        "deployments": [*model.deployments],
        "dataset_version": model.dataset_version,
        "rows": model.rows.kept.value,
        "rows_time": model.rows.time.isoformat() if model.rows.time else None,
    }


def _rows(row: dict[str, Plain]) -> str:
    if row["rows"] in _WITH_TIME:
        return f"{row['rows']} {str(row['rows_time'])[:10]}"
    return cell(row["rows"])


COLUMNS: Sequence[Column] = (
    field("model", "model"),
    field("version", "version", right=True),
    field("aliases", "aliases"),
    field("deployments", "deployments"),
    field("dataset version", "dataset_version", right=True),
    Column("rows", _rows),
)


def _warn(dataset: str, models: Sequence[TrainedModel]) -> None:
    """Say what of live models goes, while something can be done about it."""
    from headrace.client.lineage import Kept

    going = sorted(
        {model.dataset_version for model in models if model.live and model.rows.kept is Kept.FOR_A_TIME}
    )
    if going:
        numbers = ", ".join(map(str, going))
        console.print(
            Text(
                f"Live models were trained on rows that will go (dataset version {numbers}): "
                f"`headrace dataset pin {dataset} VERSION` keeps them.",
                "yellow",
            ),
            soft_wrap=True,
        )
