"""Commands for the embedded stack: up, down, status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.output import ExitCode, Format, OutputOption, field, show_error, show_rows
from headrace.cli.session import DEFAULT_DATA, DataOption
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.cli.plain import Plain

COLUMNS = (
    field("part", "part"),
    field("state", "state"),
    field("restarts", "restarts", right=True),
    field("pid", "pid", right=True),
    field("address", "address"),
    field("log", "log"),
    field("message", "message"),
)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (up, down, status):
        app.command()(command)


def up(
    broker: Annotated[
        str, typer.Option(help="embedded (in memory), kafka (Apache Kafka, needs Java 17), or HOST:PORT.")
    ] = "embedded",
    postgres: Annotated[str, typer.Option(help="embedded, or a DSN.")] = "embedded",
    store: Annotated[
        str, typer.Option(help="A folder, or s3://bucket/prefix. Left out: in the data folder.")
    ] = "",
    host: Annotated[
        str,
        typer.Option(
            help="The address that the broker, the services' gRPC and Envoy bind to; "
            "everything else stays on loopback."
        ),
    ] = "127.0.0.1",
    otlp_endpoint: Annotated[
        str, typer.Option(help="http://host:port of a collector. Left out: the stack keeps its own traces.")
    ] = "",
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay, and stop the stack on Ctrl-C.")
    ] = False,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Start the stack on this machine and leave it running."""
    from headrace.embedded import commands

    try:
        commands.up(
            data,
            broker=broker,
            postgres=postgres,
            store=store,
            host=host,
            otlp_endpoint=otlp_endpoint,
            foreground=foreground,
        )
    except HeadraceError as error:
        raise typer.Exit(show_error(error)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.INTERRUPTED) from error


def down(data: DataOption = DEFAULT_DATA) -> None:
    """Stop the stack; its data stays."""
    from headrace.embedded import commands

    try:
        commands.down(data)
    except HeadraceError as error:
        raise typer.Exit(show_error(error)) from error


def status(output: OutputOption = Format.TABLE, data: DataOption = DEFAULT_DATA) -> None:
    """Show each part's health. Exit code 0 only if all of them are ready."""
    from headrace.embedded import commands

    try:
        parts = commands.status(data)
    except HeadraceError as error:
        raise typer.Exit(show_error(error)) from error
    rows: list[dict[str, Plain]] = [
        {
            "part": part.name,
            "state": part.state,
            "restarts": part.restarts,
            "pid": part.pid,
            "address": part.address,
            "log": _shown(part.log),
            "message": part.message,
        }
        for part in parts
    ]
    show_rows(rows, COLUMNS, output)
    if any(part.state != "ready" for part in parts):
        raise typer.Exit(ExitCode.UNAVAILABLE)


def _shown(path: Path | None) -> str:
    """A path relative to where the user stands, if it lies below."""
    if path is None:
        return ""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
