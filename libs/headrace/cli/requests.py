"""Commands for inference requests over Kafka: requests list, status, get, cancel, replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from headrace.cli.output import (
    Format,
    OutputOption,
    console,
    errors,
    field,
    show_document,
    show_rows,
)
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient

requests_app = typer.Typer(no_args_is_help=True, help="See, cancel and replay inference requests over Kafka.")

_STATES = ("received", "answered", "failed", "expired", "cancelled")
_COLUMNS = (
    field("id", "id"),
    field("deployment", "deployment"),
    field("state", "state"),
    field("priority", "priority"),
    field("attempts", "attempts", right=True),
    field("version", "version"),
    field("reason", "reason"),
    field("received", "receive_time"),
    field("ended", "end_time"),
)

IdArgument = Annotated[str, typer.Argument(help="The id of the request's event.", show_default=False)]
SourceOption = Annotated[str, typer.Option(help="Its ce_source, where several producers use the id.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(requests_app, name="requests")


def _state(text: str) -> str:
    if text and text.lower() not in _STATES:
        raise typer.BadParameter(f"must be one of {', '.join(_STATES)}")
    return text.upper()


@requests_app.command(name="list")
def list_(
    deployment: Annotated[str, typer.Option(help="Only to this deployment.")] = "",
    state: Annotated[
        str, typer.Option(callback=_state, help="Only those in this state, such as failed.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    page: Annotated[str, typer.Option(help="Go on where a list ended, as it says.")] = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """List requests, newest first."""
    from headrace.api.inference.v1 import requests_pb2 as api
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        request = api.ListRequestsRequest(
            deployment=deployment,
            state=api.RequestState.Value(f"REQUEST_STATE_{state or 'UNSPECIFIED'}"),
            page_token=page,
        )
        rows: list[dict[str, Plain]] = []
        while len(rows) < limit:
            request.page_size = min(limit - len(rows), 1000)
            answer = await client.inference_requests.ListRequests(request)
            rows += map(plain, answer.requests)
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        show_rows(rows, _COLUMNS, output)
        if request.page_token:
            errors.print(Text(f"There are more: add --page {request.page_token}", "dim"), soft_wrap=True)

    run(data, command)


@requests_app.command()
def status(
    request_id: IdArgument,
    source: SourceOption = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Say in one line where a request is."""
    from headrace.api.inference.v1 import requests_pb2 as api
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        found = await client.inference_requests.GetRequest(
            api.GetRequestRequest(id=request_id, source=source)
        )
        show_rows([plain(found)], _COLUMNS, output)

    run(data, command)


@requests_app.command()
def get(
    request_id: IdArgument,
    source: SourceOption = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Show all that is known of a request."""
    from headrace.api.inference.v1 import requests_pb2 as api
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        found = await client.inference_requests.GetRequest(
            api.GetRequestRequest(id=request_id, source=source)
        )
        show_document(plain(found), output)

    run(data, command)


@requests_app.command()
def cancel(
    request_id: IdArgument,
    source: SourceOption = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """End a request that has no answer yet; its requester is told."""
    from headrace.api.inference.v1 import requests_pb2 as api
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        ended = await client.inference_requests.CancelRequest(
            api.CancelRequestRequest(id=request_id, source=source)
        )
        if output is Format.TABLE:
            console.print(Text(f"{ended.id} is cancelled"), soft_wrap=True)
        else:
            show_document(plain(ended), output)

    run(data, command)


@requests_app.command()
def replay(
    request_id: IdArgument,
    source: SourceOption = "",
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that a new run may take; 0: as long as it takes.")
    ] = 0,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Publish an answer again, or run anew what failed, expired or was cancelled."""
    from datetime import timedelta

    from headrace.api.inference.v1 import requests_pb2 as api
    from headrace.cli.plain import plain
    from headrace.rpc.convert import to_duration

    async def command(client: HeadraceClient) -> None:
        replayed = await client.inference_requests.ReplayRequest(
            api.ReplayRequestRequest(
                id=request_id,
                source=source,
                timeout=to_duration(timedelta(seconds=timeout)) if timeout else None,
            )
        )
        if output is not Format.TABLE:
            show_document(plain(replayed), output)
        elif replayed.state == api.REQUEST_STATE_ANSWERED:
            console.print(Text(f"the answer to {replayed.id} is published again"), soft_wrap=True)
        else:
            again = f"`headrace requests status {replayed.id}` shows what becomes of it"
            console.print(Text(f"{replayed.id} is run again; {again}"), soft_wrap=True)

    run(data, command)
