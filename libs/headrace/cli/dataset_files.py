"""Files for datasets: `headrace dataset validate`, `headrace dataset infer`, `headrace import`."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from headrace.cli.dataset import dataset_app
from headrace.cli.output import (
    Column,
    ExitCode,
    Format,
    OutputOption,
    console,
    field,
    rows_table,
    show_document,
)
from headrace.cli.session import DEFAULT_DATA, DataOption, run
from headrace.errors import InvalidArgument

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient
    from headrace.client.validating import Report

# Between two looks at how many rows have arrived.
LOOK_SECONDS = 0.5

FilesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE...",
        help="CSV, Parquet or JSON lines, local or s3://BUCKET/KEY; *, ? and [...] are filled in.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (validate, infer):
        dataset_app.command()(command)
    app.command("import")(import_files)


def validate(
    files: FilesArgument,
    dataset: Annotated[str, typer.Option(help="Judge by this dataset's schema.")] = "",
    pipeline: Annotated[
        Path | None, typer.Option("--file", "-f", help="Judge by the schema in a pipeline's YAML file.")
    ] = None,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Say which rows of files a dataset would reject, and why; nothing is stored. Exits with 1 where any."""
    if bool(dataset) == (pipeline is not None):
        raise typer.BadParameter("name a dataset with --dataset, or a pipeline's file with -f")

    async def command(client: HeadraceClient) -> Report:
        from headrace.cli.progress import rows_bar
        from headrace.client import pipeline_file
        from headrace.client.data_files import find_files, inspect, read_rows
        from headrace.client.validating import Report, validate

        if pipeline is not None:
            schema = pipeline_file.read(pipeline).request.spec.dataset.schema
        else:
            schema = (await _dataset(client, dataset)).schema
        report = Report()
        with rows_bar() as bar:
            for file in await find_files(files):
                async with file.on_disk() as path:
                    rows = (await asyncio.to_thread(inspect, path)).rows
                    task = bar.add_task(file.name, total=rows)
                    await validate(
                        client.ingestion,
                        read_rows(path, schema),
                        schema,
                        report,
                        partial(bar.advance, task),
                    )
        return report

    report = run(data, command)
    _show_report(report, output)
    if report.invalid:
        raise typer.Exit(ExitCode.FAILED)


def _show_report(report: Report, output: Format) -> None:
    worst = sorted(report.faults.values(), key=lambda fault: -fault.count)
    faults: list[dict[str, Plain]] = [
        {
            "field": fault.field,
            "rule": fault.rule,
            "reason": fault.reason,
            "count": fault.count,
            "rows": [*fault.rows],
            "message": fault.message,
        }
        for fault in worst
    ]
    if output is not Format.TABLE:
        show_document({"valid": report.valid, "invalid": report.invalid, "faults": [*faults]}, output)
        return
    if faults:
        console.print(rows_table(faults, _FAULTS))
    console.print(f"{report.valid} of {report.valid + report.invalid} rows are valid")


def _some_rows(row: dict[str, Plain]) -> str:
    rows, count = row["rows"], row["count"]
    assert isinstance(rows, list)
    assert isinstance(count, int)
    return ", ".join(map(str, rows)) + (", ..." if count > len(rows) else "")


_FAULTS = (
    field("field", "field"),
    field("rule", "rule"),
    field("rows", "count", right=True),
    Column("at", _some_rows),
    field("the first", "message"),
)


def infer(
    file: Annotated[str, typer.Argument(help="CSV, Parquet or JSON lines, local or s3://BUCKET/KEY.")],
    key: Annotated[str, typer.Option(help="The column that names the sample's entity.")] = "",
    label: Annotated[str, typer.Option(help="The column that models learn to tell.")] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="Allow only the ranges and the words that the file has.")
    ] = False,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Propose a pipeline's dataset section from a file, as YAML with a reason for each guess."""

    async def command(_client: HeadraceClient) -> str:
        from headrace.client.data_files import find_files
        from headrace.client.inferring import propose

        found = await find_files([file])
        if len(found) > 1:
            raise InvalidArgument("SEVERAL_FILES", f"{file} names {len(found)} files; choose one")
        async with found[0].on_disk() as path:
            return await asyncio.to_thread(propose, path, key=key, label=label, strict=strict)

    sys.stdout.write(run(data, command))


def import_files(
    files: FilesArgument,
    dataset: Annotated[str, typer.Option(help="The dataset that the rows belong to.")],
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Send what was sent before, too; what was stored lately is stored once."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the rows are stored or rejected, and count them.")
    ] = False,
    patience: Annotated[
        float, typer.Option(help="With --wait: seconds without news after which the wait ends.", min=1)
    ] = 60.0,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Publish files' rows to a dataset, each once: run it again where it was cut off."""

    async def command(client: HeadraceClient) -> dict[str, Plain]:
        from headrace.cli.progress import rows_bar
        from headrace.client.data_files import find_files
        from headrace.client.importing import ImportLog, import_file
        from headrace.telemetry.tracing import new_traceparent

        target = await _dataset(client, dataset)
        traceparent, count, before = new_traceparent(), 0, 0
        found = await find_files(files)
        with rows_bar() as bar:
            for file in found:
                task = bar.add_task(file.name, total=None)
                imported = await import_file(
                    client,
                    target,
                    file,
                    ImportLog(data / "imports"),
                    again=again,
                    traceparent=traceparent,
                    opened=partial(_expect, bar, task),
                    published=partial(bar.advance, task),
                    other_broker=partial(_say_other_broker, bar, file.name),
                )
                count, before = count + imported.published, before + imported.before
            arrived = await _arrived(client, target, count, patience) if wait else {}
        return {
            "files": len(found),
            "published": count,
            "published_before": before,
            **arrived,
            "traceparent": traceparent,
        }

    result = run(data, command)
    if output is not Format.TABLE:
        show_document(result, output)
        return
    earlier = f", {result['published_before']} had been before" if result["published_before"] else ""
    sources = "1 file" if result["files"] == 1 else f"{result['files']} files"
    console.print(f"{result['published']} rows of {sources} published to {dataset}{earlier}")
    if wait:
        console.print(f"{result['stored']} stored, {result['rejected']} rejected")
        if result["unseen"]:
            console.print(
                f"{result['unseen']} are neither: stored before under the same id, older than the dataset "
                "keeps rows, or still on their way; `headrace get datasets` shows them arrive"
            )
    else:
        console.print("`headrace get datasets` shows them arrive, or use --wait")


def _expect(bar: Progress, task: TaskID, rows: int) -> None:
    bar.update(task, total=rows)


def _say_other_broker(bar: Progress, file: str, rows: int) -> None:
    sentence = (
        f"{file}: {rows} of its rows had been published to another broker than this one, and what was not "
        "stored by then is gone; --again sends all of them, and those that are stored would be stored twice"
    )
    bar.console.print(Text(sentence), soft_wrap=True)


async def _arrived(
    client: HeadraceClient, before: ingestion.Dataset, count: int, patience: float
) -> dict[str, Plain]:
    """How many rows were stored and rejected since, once they are as many, or none came for so long."""
    loop = asyncio.get_running_loop()
    seen, deadline = -1, 0.0
    while True:
        now = await _dataset(client, before.name)
        stored = now.row_count - before.row_count
        rejected = now.rejected_count - before.rejected_count
        if stored + rejected > seen:
            seen, deadline = stored + rejected, loop.time() + patience
        if seen >= count or loop.time() > deadline:
            return {"stored": stored, "rejected": rejected, "unseen": max(0, count - seen)}
        await asyncio.sleep(LOOK_SECONDS)


async def _dataset(client: HeadraceClient, name: str) -> ingestion.Dataset:
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion

    return await client.ingestion.GetDataset(ingestion.GetDatasetRequest(name=name))
