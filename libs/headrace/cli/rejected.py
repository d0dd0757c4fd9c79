"""Commands for rejected events: rejected list, show, replay, discard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer
from rich.text import Text

from headrace.cli.numbers import MAX_NUMBER
from headrace.cli.output import (
    ExitCode,
    Format,
    OutputOption,
    console,
    errors,
    printable,
    show_document,
    show_rows,
)
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient

rejected_app = typer.Typer(no_args_is_help=True, help="See, replay and discard events that were rejected.")

_STATES = ("pending", "replayed", "discarded")
_BYTES = ("key", "payload", "headers")
_HEX_COLUMNS = 16

IdsArgument = Annotated[
    list[int] | None,
    typer.Argument(
        help="Ids, as `headrace rejected list` shows them.", show_default=False, min=1, max=MAX_NUMBER
    ),
]
ReasonOption = Annotated[str, typer.Option(help="A reason's code, such as SCHEMA_VIOLATION.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(rejected_app, name="rejected")


def _state(text: str) -> str:
    if text and text.lower() not in _STATES:
        raise typer.BadParameter(f"must be one of {', '.join(_STATES)}")
    return text.upper()


@rejected_app.command(name="list")
def list_(
    dataset: Annotated[str, typer.Option(help="Only of this dataset.")] = "",
    reason: ReasonOption = "",
    state: Annotated[
        str, typer.Option(callback=_state, help="Only pending, replayed or discarded ones.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    page: Annotated[str, typer.Option(help="Go on where a list ended, as it says.")] = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """List rejected events, newest first."""
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
    from headrace.cli.kinds import kind_named
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        request = ingestion.ListRejectedRequest(
            dataset=dataset,
            reason=reason.upper(),
            state=ingestion.RejectedState.Value(f"REJECTED_STATE_{state or 'UNSPECIFIED'}"),
            page_token=page,
        )
        rows: list[dict[str, Plain]] = []
        while len(rows) < limit:
            request.page_size = min(limit - len(rows), 1000)
            answer = await client.ingestion.ListRejected(request)
            rows += map(plain, answer.rejected)
            request.page_token = answer.next_page_token
            if not request.page_token:
                break
        show_rows(rows, kind_named("rejected").columns, output)
        if request.page_token:
            errors.print(Text(f"There are more: add --page {request.page_token}", "dim"), soft_wrap=True)

    run(data, command)


@rejected_app.command()
def show(
    name: Annotated[str, typer.Argument(help="Its id, event id, or PARTITION/OFFSET.")],
    reveal: Annotated[
        bool,
        typer.Option("--reveal", help="Show bytes that are kept encrypted. It is logged."),
    ] = False,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Show one rejected event, whole: why, and its original headers and bytes."""
    from headrace.cli.kinds import find_rejected
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        found = await find_rejected(client, name, reveal=reveal)
        row = plain(found)
        if output is not Format.TABLE:
            show_document(row, output)
            return
        show_document({field: value for field, value in row.items() if field not in _BYTES}, output)
        if found.sealed_by:
            console.print(
                "Its key, headers and payload are encrypted, for they may hold personal data; "
                "add --reveal to see them.",
                soft_wrap=True,
            )
            return
        _show_bytes("key", found.key)
        console.print("headers:")
        for header in sorted(found.headers):
            first, *rest = readable(found.headers[header])
            _show_lines([f"{readable(header.encode())[0]}: {first}", *rest], indent="  ")
        if "ce_dataref" in found.headers and not found.payload:
            _show_lines(["payload: in the object store, where ce_dataref says"], indent="")
        else:
            _show_bytes("payload", found.payload)

    run(data, command)


@rejected_app.command()
def replay(
    ids: IdsArgument = None,
    dataset: Annotated[
        str,
        typer.Option(help="Without ids: all that wait of this dataset. With an id: send it to this dataset."),
    ] = "",
    reason: ReasonOption = "",
    payload: Annotated[
        Path | None, typer.Option(help="Send this file's bytes instead of the original payload.")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option(help="Send it with this CloudEvents attribute: type=..., source=..., dataschema=..."),
    ] = None,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Send rejected events again, each once: some by their ids, or all that wait."""
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion

    correction = ingestion.Correction(attributes=_attributes(attribute or []))
    if payload is not None:
        correction.payload = _read(payload)
    if ids and dataset:
        correction.attributes["subject"] = dataset
    if ids and reason:
        raise typer.BadParameter("ids exclude --reason")
    if not ids and correction.ByteSize():
        raise typer.BadParameter("a correction is for one event: name it by its id")

    async def command(client: HeadraceClient) -> None:
        if ids:
            request = ingestion.ReplayRejectedRequest(ids=ids)
            if correction.ByteSize():
                request.correction.CopyFrom(correction)
            answers = [await client.ingestion.ReplayRejected(request)]
        else:
            answers = await _followed(client.replay_rejected(dataset=dataset, reason=reason.upper()))
        count = sum(answer.replayed_count for answer in answers)
        oversize = [entry for answer in answers for entry in answer.oversize_ids]
        if output is Format.TABLE:
            console.print(
                f"{count} replayed; `headrace rejected list --state pending` shows what is rejected again"
            )
        else:
            show_document({"replayed": count, "oversize": [*oversize]}, output)
        if oversize:
            errors.print(
                Text(
                    f"Too large to be replayed, have their producer send them again: "
                    f"{', '.join(map(str, oversize))}"
                ),
                soft_wrap=True,
            )
            raise typer.Exit(ExitCode.FAILED)

    run(data, command)


@rejected_app.command()
def discard(
    because: Annotated[str, typer.Option(help="Why they are not wanted, for whoever asks later.")],
    ids: IdsArgument = None,
    dataset: Annotated[str, typer.Option(help="All that wait of this dataset.")] = "",
    reason: ReasonOption = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Mark rejected events as not wanted: some by their ids, or all that wait. They stay in the list."""
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion

    if ids and (dataset or reason):
        raise typer.BadParameter("ids exclude --dataset and --reason")

    async def command(client: HeadraceClient) -> None:
        if ids:
            request = ingestion.DiscardRejectedRequest(ids=ids, reason=because)
            answers = [await client.ingestion.DiscardRejected(request)]
        else:
            matching = client.discard_rejected(because, dataset=dataset, reason=reason.upper())
            answers = await _followed(matching)
        count = sum(answer.discarded_count for answer in answers)
        if output is Format.TABLE:
            console.print(f"{count} discarded")
        else:
            show_document({"discarded": count}, output)

    run(data, command)


class _Answer(Protocol):
    @property
    def next_page_token(self) -> str: ...


A = TypeVar("A", bound=_Answer)


async def _followed(answers: AsyncIterator[A]) -> list[A]:
    """All answers; in a terminal it is seen that they come."""
    with errors.status("at it ..."):
        return [answer async for answer in answers]


def _attributes(given: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--attribute")
        found[name.removeprefix("ce_")] = value
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--payload") from error


def _show_bytes(name: str, data: bytes) -> None:
    console.print(f"{name} ({len(data)} bytes):")
    _show_lines(readable(data), indent="  ")


def _show_lines(lines: Iterable[str], *, indent: str) -> None:
    for line in lines:
        console.print(Text(indent + line), soft_wrap=True)


def readable(data: bytes) -> list[str]:
    """Bytes as lines that a terminal shows and does not obey: text with escapes, or else hexadecimal."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return _hexadecimal(data)
    return printable(text).split("\n")


def _hexadecimal(data: bytes) -> list[str]:
    return [
        f"{start:08x}  {part.hex(' '):<{3 * _HEX_COLUMNS}} "
        + "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in part)
        for start in range(0, len(data), _HEX_COLUMNS)
        for part in [data[start : start + _HEX_COLUMNS]]
    ]
