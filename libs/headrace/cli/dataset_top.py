"""`headrace dataset top`: what comes into the datasets, live."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.text import Text

from headrace.cli.dataset import dataset_app
from headrace.cli.output import Column, Format, OutputOption, console, field, rows_table, show_document
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient


def _number(heading: str, name: str, digits: int) -> Column:
    """A column of numbers of so many digits behind the point."""

    def text(row: dict[str, Plain]) -> str:
        value = row[name]
        return f"{value:,.{digits}f}" if isinstance(value, int | float) else "-"

    return Column(heading, text, right=True)


COLUMNS: Sequence[Column] = (
    field("dataset", "dataset"),
    _number("rows", "rows", 0),
    _number("rows/s", "rows_per_second", 1),
    _number("rejected", "rejected", 0),
    _number("rejected/s", "rejected_per_second", 1),
    _number("freshness, s", "freshness_seconds", 2),
    field("version", "latest_version", right=True),
)


def register(_app: typer.Typer) -> None:
    """Add this module's command to the group that is in `app` already."""
    dataset_app.command()(top)


def top(
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds from one look to the next.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, over one interval, and end.")] = False,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Show rows, rejected events and freshness of each dataset, and the topic's lag, live; q ends it.

    Rates are of the last interval. Freshness is the time from an event's arrival in the topic to its
    visibility in the table, of the last batch. The lag is the topic's: whose events wait is known when they
    are read. Both are in the instances' metrics: HEADRACE_INGESTION_HTTP_TARGET names the instances,
    HOST:PORT, with commas between them, where they are not those of the embedded stack.
    """

    async def command(client: HeadraceClient) -> None:
        if output is Format.TABLE and not once:
            await _live(client, interval)
            return
        async for document in _documents(client, interval):
            if output is Format.TABLE:
                console.print(_drawn(document))
            else:
                show_document(document, output)
            if once:
                return

    run(data, command)


async def _documents(client: HeadraceClient, interval: float) -> AsyncIterator[dict[str, Plain]]:
    """What came in during each interval."""
    from headrace.cli.intake import look

    before = await look(client)
    while True:
        await asyncio.sleep(interval)
        now = await look(client)
        yield now.since(before)
        before = now


async def _live(client: HeadraceClient, interval: float) -> None:
    from rich.live import Live

    from headrace.cli.intake import look

    before = await look(client)
    with (
        _quit_key() as quitting,
        Live(_drawn(before.since(before)), console=console, screen=True, auto_refresh=False) as live,
    ):
        while not await _set_within(quitting, interval):
            now = await look(client)
            live.update(_drawn(now.since(before)), refresh=True)
            before = now


def _drawn(document: dict[str, Plain]) -> Group:
    datasets = document["datasets"]
    assert isinstance(datasets, list)
    rows = [row for row in datasets if isinstance(row, dict)]
    return Group(Text("   ".join(_headline(document)), "bold"), Text(), rows_table(rows, COLUMNS))


def _headline(document: dict[str, Plain]) -> Iterator[str]:
    """What is known of the service as a whole; its metrics may be out of reach."""
    texts = {
        "events_per_second": "{:,.0f} events/s",
        "lag_events": "lag {:,.0f} events",
        "duplicates_per_second": "{:,.0f} duplicates/s",
        "commit_seconds": "commit {:.3f} s",
        "batch_events": "batch {:,.0f} events",
        "memory_mebibytes": "memory {:,.0f} MiB",
    }
    known = [text.format(document[name]) for name, text in texts.items() if document[name] is not None]
    yield from known or ["no metrics: HEADRACE_INGESTION_HTTP_TARGET names no instance"]


@contextmanager
def _quit_key() -> Iterator[asyncio.Event]:
    """An event that q sets, where a terminal is read; keys then come at once, and are not shown."""
    quitting = asyncio.Event()
    if not sys.stdin.isatty():
        yield quitting
        return
    import termios
    import tty

    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        if sys.stdin.read(1) in ("q", "Q", ""):
            quitting.set()

    tty.setcbreak(terminal)
    loop.add_reader(terminal, pressed)
    try:
        yield quitting
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
