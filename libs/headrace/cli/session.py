"""From a command's function to a connected client and an exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from headrace.cli.output import ExitCode, show_error
from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.client import HeadraceClient

T = TypeVar("T")

DataOption = Annotated[
    Path,
    typer.Option(
        "--data", envvar="HEADRACE_DATA", help="The stack's data folder, which says where its parts listen."
    ),
]
DEFAULT_DATA = Path(".headrace")


def run(data: Path, command: Callable[[HeadraceClient], Awaitable[T]]) -> T:
    """Run a command with a client for the stack in `data`; a HeadraceError ends it with its exit code."""

    # Loaded by a command that runs, not by one that prints its help: gRPC takes a quarter of a second.
    from headrace.client import HeadraceClient

    async def connected() -> T:
        async with HeadraceClient.from_environment(data) as client:
            return await command(client)

    try:
        return asyncio.run(connected())
    except HeadraceError as error:
        raise typer.Exit(show_error(error)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.INTERRUPTED) from error
