"""Commands about erasures: dataset erase, erasures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from headrace.cli.dataset import NameArgument, dataset_app
from headrace.cli.output import Format, OutputOption, console, errors, field, show_document, show_rows
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.api.ingestion.v1 import erasure_pb2 as erasures
    from headrace.client import HeadraceClient


def register(_app: typer.Typer) -> None:
    """Add this module's commands."""
    dataset_app.command()(erase)
    dataset_app.command("erasures")(list_erasures)


def erase(
    name: NameArgument,
    key: Annotated[
        str,
        typer.Option(help="Whose data: the value of the dataset's key. -: read it from standard input."),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Erase a subject from all versions, pinned or not, rejected events and logged predictions, for good."""
    from headrace.api.ingestion.v1 import erasure_pb2 as erasures
    from headrace.cli.plain import plain
    from headrace.client.erasing import followed
    from headrace.client.lineage import trained_on

    subject = sys.stdin.readline().rstrip("\n") if key == "-" else key
    if not yes:
        typer.confirm(f"Erase all of one subject's data from every version of {name}?", abort=True, err=True)

    async def command(client: HeadraceClient) -> None:
        request = erasures.EraseSubjectRequest(dataset=name, key=subject)
        begun = erasure = await client.erasures.EraseSubject(request)
        with errors.status(f"erasure {begun.id} ...") as status:
            async for erasure in followed(client, begun):
                status.update(f"erasure {erasure.id}: {_step(erasure)}")
        if output is Format.TABLE:
            # Before the registry is asked, which may be away.
            _show(erasure)
        models = [
            f"{model.model}/{model.version}" async for model in trained_on(client, name, {*erasure.versions})
        ]
        if output is Format.TABLE:
            _show_models(models)
        else:
            show_document({"erasure": plain(erasure), "model_versions": [*models]}, output)

    run(data, command)


def list_erasures(
    name: NameArgument, output: OutputOption = Format.TABLE, data: DataOption = DEFAULT_DATA
) -> None:
    """List a dataset's erasures, newest first: how much was erased, not whose it was."""
    from headrace.api.ingestion.v1 import erasure_pb2 as erasures
    from headrace.cli.plain import plain

    columns = (
        field("id", "id"),
        field("state", "state"),
        field("rows", "row_count", right=True),
        field("rejected", "rejected_count", right=True),
        field("predictions", "prediction_count", right=True),
        field("versions", "versions"),
        field("requested", "create_time"),
        field("done", "end_time"),
        field("problem", "problem"),
    )

    async def command(client: HeadraceClient) -> None:
        answer = await client.erasures.ListErasures(
            erasures.ListErasuresRequest(dataset=name, page_size=1000)
        )
        show_rows([plain(erasure) for erasure in answer.erasures], columns, output)

    run(data, command)


def _step(erasure: erasures.Erasure) -> str:
    from headrace.api.ingestion.v1 import erasure_pb2

    if erasure.problem:
        return f"waits: {erasure.problem}"
    if erasure.state == erasure_pb2.ERASURE_STATE_REWRITTEN:
        return "earlier versions, rejected events and predictions"
    return "newest rows"


def _show(erasure: erasures.Erasure) -> None:
    held = ", ".join(map(str, erasure.versions)) or "none"
    console.print(
        f"{erasure.row_count} rows erased, {erasure.rejected_count} rejected events, and "
        f"{erasure.prediction_count} logged predictions; no file of the table holds the subject any more.",
        soft_wrap=True,
    )
    console.print(f"versions of {erasure.dataset} that held it: {held}", soft_wrap=True)
    console.print(
        Text(
            "Topics keep events for their own retention. Predictions are found where requests named their"
            " subject.",
            "dim",
        ),
        soft_wrap=True,
    )


def _show_models(models: Sequence[str]) -> None:
    if models:
        console.print(Text(f"model versions trained on them: {', '.join(models)}", "yellow"), soft_wrap=True)
    else:
        console.print("No model version was trained on them.")
