"""The `headrace` command. `headrace --help` lists what it can do; exit codes stand in `output.ExitCode`."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli import (
    act,
    dataset,
    dataset_erasure,
    dataset_files,
    dataset_lineage,
    dataset_schemas,
    dataset_top,
    drift,
    explain,
    look,
    model,
    quality,
    rejected,
    requests,
    rollout,
    stack,
    tune,
)

app = typer.Typer(
    name="headrace",
    help=(
        "A self-hosted, event-driven AI cloud: events in, versioned datasets, trained and gated models, "
        "live predictions out.\n\n"
        "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 a part does not answer, 5 invalid "
        "input, 6 wrong state for it, 7 too slow."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for module in (
    stack,
    look,
    act,
    explain,
    dataset,
    dataset_erasure,
    dataset_files,
    dataset_lineage,
    dataset_schemas,
    dataset_top,
    drift,
    model,
    quality,
    rejected,
    requests,
    rollout,
    tune,
):
    module.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("headrace"))
        raise typer.Exit


@app.callback()
def headrace(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


if __name__ == "__main__":
    app()
