"""Commands that show: get, describe, events, logs, trace, why."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from headrace.cli.output import (
    Format,
    OutputOption,
    cell,
    console,
    field,
    rows_table,
    show_document,
    show_rows,
)
from headrace.cli.session import DEFAULT_DATA, DataOption, run
from headrace.errors import InvalidArgument, NotFound

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.cli.kinds import Kind
    from headrace.cli.plain import Plain
    from headrace.cli.waterfall import Span
    from headrace.client import HeadraceClient

WATCH_SECONDS = 1.0
REFRESH_PER_SECOND = 4


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (get, describe, events, logs, trace, why):
        app.command()(command)


def _kinds(incomplete: str) -> list[str]:
    """Complete a kind's name in a shell."""
    from headrace.cli.kinds import KINDS

    return [name for name in (*(kind.name for kind in KINDS), "events") if name.startswith(incomplete)]


def get(
    kind: Annotated[
        str,
        typer.Argument(
            help="datasets, versions, rejected, pipelines, jobs, nodes, runs, recipes, models, "
            "model-versions, deployments, rollouts, predictions or events.",
            autocompletion=_kinds,
        ),
    ],
    scope: Annotated[str, typer.Argument(help="What to list of: a dataset, pipeline, model, ...")] = "",
    output: OutputOption = Format.TABLE,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep the table up to date.")] = False,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """List things of a kind."""
    from headrace.cli.kinds import kind_named

    if kind in {"events", "event"}:
        events(scope, follow=watch, from_beginning=True, output=output, data=data)
        return

    async def command(client: HeadraceClient) -> None:
        chosen = kind_named(kind)
        if chosen.needs_scope and not scope:
            usage = f"headrace get {chosen.name} {chosen.scope.upper()}"
            raise InvalidArgument("MISSING_SCOPE", f"{chosen.name} belong to a {chosen.scope}: {usage}")
        if watch:
            await _watch(client, chosen, scope, output)
        else:
            show_rows(await chosen.list(client, scope), chosen.columns, output)

    run(data, command)


async def _watch(client: HeadraceClient, kind: Kind, scope: str, output: Format) -> None:
    """Show a list again and again: a table in its place, or a document after each change."""
    from rich.live import Live

    if output is Format.TABLE:
        with Live(console=console, refresh_per_second=REFRESH_PER_SECOND) as live:
            while True:
                live.update(rows_table(await kind.list(client, scope), kind.columns))
                await asyncio.sleep(WATCH_SECONDS)
    shown = None
    while True:
        rows = await kind.list(client, scope)
        if rows != shown:
            show_rows(rows, kind.columns, output)
            shown = rows
        await asyncio.sleep(WATCH_SECONDS)


def describe(
    kind: Annotated[
        str, typer.Argument(help="dataset, job, model, deployment, event, ...", autocompletion=_kinds)
    ],
    name: Annotated[
        str, typer.Argument(help="Its name; a version is OWNER/NUMBER, a model's also NAME@ALIAS.")
    ],
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Show one thing, whole."""
    from headrace.cli import events as topic_events
    from headrace.cli.kinds import kind_named

    async def command(client: HeadraceClient) -> None:
        if kind in {"events", "event"}:
            found = await topic_events.find(client.kafka_bootstrap, name)
            if found is None:
                raise NotFound("EVENT_NOT_FOUND", f"no topic holds an event of the id {name!r}")
        else:
            found = await kind_named(kind).find(client, name)
        show_document(found, output)

    run(data, command)


def events(
    topic: Annotated[str, typer.Argument(help="Part of a topic's name; all topics where left out.")] = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with events as they come.")] = False,
    from_beginning: Annotated[bool, typer.Option(help="Begin with the oldest that the broker has.")] = True,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Read topics, decoded."""
    from headrace.cli import events as topic_events

    async def command(client: HeadraceClient) -> None:
        topics = topic_events.topics_named(topic)
        rows: list[dict[str, Plain]] = []
        async with aclosing(
            topic_events.read(client.kafka_bootstrap, topics, follow=follow, from_beginning=from_beginning)
        ) as stream:
            async for row in stream:
                if follow:
                    _show_event(row, output)
                else:
                    rows.append(row)
        if not follow:
            show_rows(sorted(rows, key=lambda row: str(row["time"])), topic_events.COLUMNS, output)

    run(data, command)


def _show_event(row: dict[str, Plain], output: Format) -> None:
    from headrace.cli import events as topic_events

    if output is Format.TABLE:
        texts = [column.text(row) for column in topic_events.COLUMNS]
        console.print(Text("  ".join(texts)), soft_wrap=True)
    else:
        show_document(row, output)


def logs(
    name: Annotated[
        str, typer.Argument(help="A run's or job's id, or a part of the stack: ingestion, triton, ...")
    ],
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Print a run's output while it goes on, or a part's log."""
    from headrace.api.training.v1 import training_pb2 as training

    async def command(client: HeadraceClient) -> None:
        # A stack that did not start leaves its logs, and no file that says where they are.
        part = (client.logs_folder or data / "logs") / f"{name}.log"
        if part.exists():
            console.print(Text(part.read_text(errors="replace")), soft_wrap=True)
            return
        run_id = name
        listed = await client.training.ListRuns(training.ListRunsRequest(job=name, page_size=1))
        if listed.runs:
            run_id = listed.runs[0].id
        async for answer in client.training.StreamLogs(training.StreamLogsRequest(id=run_id)):
            for line in answer.lines:
                console.print(Text(line), soft_wrap=True)

    run(data, command)


def trace(
    trace_id: Annotated[str, typer.Argument(help="A trace id, 32 hexadecimal digits.")] = "",
    job: Annotated[str, typer.Option(help="The trace of this job.")] = "",
    prediction: Annotated[str, typer.Option(help="The trace of this prediction.")] = "",
    event: Annotated[str, typer.Option(help="The trace of the event with this id.")] = "",
    statements: Annotated[bool, typer.Option(help="Show statements to the database, too.")] = False,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Draw a trace as a waterfall, from the embedded stack's own trace store."""
    from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
    from headrace.cli import events as topic_events
    from headrace.cli import waterfall
    from headrace.cli.traces import TraceStore
    from headrace.telemetry import names

    given = [value for value in (trace_id, job, prediction, event) if value]
    if len(given) != 1:
        raise typer.BadParameter("give a trace id, --job, --prediction or --event")

    async def command(client: HeadraceClient) -> None:
        store = TraceStore(client.postgres_dsn)
        # A whole traceparent, as logs and events carry it, is as good as the id in it.
        found = _trace_id(trace_id) if "-" in trace_id else trace_id.lower()
        if job:
            found = _trace_id((await client.scheduling.GetJob(scheduling.GetJobRequest(id=job))).traceparent)
        elif event:
            row = await topic_events.find(client.kafka_bootstrap, event)
            if row is None:
                raise NotFound("EVENT_NOT_FOUND", f"no topic holds an event of the id {event!r}")
            found = _trace_id(str(row["traceparent"]))
        elif prediction:
            found = await store.trace_with(names.PREDICTION_ID, prediction)
        spans = await store.spans(found, statements=statements)
        if output is Format.TABLE:
            console.print(Text(f"trace {found}", "bold"))
            console.print(waterfall.table(spans))
        else:
            show_document(_span_rows(found, spans), output)

    run(data, command)


def _trace_id(traceparent: str) -> str:
    parts = traceparent.split("-")
    if len(parts) != 4:
        raise NotFound("TRACE_NOT_FOUND", "it carries no trace: its producer sent no traceparent")
    return parts[1]


def _span_rows(trace_id: str, spans: list[Span]) -> Plain:
    return [
        {
            "trace_id": trace_id,
            "span_id": span.span_id,
            "parent_span_id": span.parent_span_id,
            "service": span.service,
            "name": span.name,
            "start_time": span.start_time.isoformat(),
            "end_time": span.end_time.isoformat(),
            "status": span.status,
        }
        for span in spans
    ]


WHY_COLUMNS = (field("node", "node"), field("verdict", "verdict"), field("detail", "detail"))


def why(
    job: Annotated[str, typer.Argument(help="A job's id.")],
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Explain why a job waits, who is ahead of it, and whether it can ever fit."""
    from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        answer = plain(await client.scheduling.WhyPending(scheduling.WhyPendingRequest(id=job)))
        if output is not Format.TABLE:
            show_document(answer, output)
            return
        console.print(
            Text.assemble(
                (str(answer["state"]), "bold"),
                "  ",
                str(answer["message"]),
                (f"  [{answer['reason']}]", "dim"),
            )
        )
        _show_part(answer, "nodes", lambda rows: rows_table(rows, WHY_COLUMNS))
        if answer["ahead_count"]:
            console.print(Text(f"{answer['ahead_count']} ahead: {cell(answer['ahead'])}"))

    run(data, command)


def _show_part(answer: dict[str, Plain], name: str, draw: Callable[[list[dict[str, Plain]]], object]) -> None:
    rows = answer[name]
    if isinstance(rows, list) and rows:
        console.print(draw([row for row in rows if isinstance(row, dict)]))
