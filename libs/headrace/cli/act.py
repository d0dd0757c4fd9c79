"""Commands that change something: apply, submit, cancel, produce, predict."""

from __future__ import annotations

import json
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from headrace.cli.numbers import read_number
from headrace.cli.output import Format, OutputOption, console, show_document
from headrace.cli.session import DEFAULT_DATA, DataOption, run
from headrace.errors import InvalidArgument

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.client import HeadraceClient


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (apply, submit, cancel, produce, predict):
        app.command()(command)


def apply(
    file: Annotated[Path, typer.Option("--file", "-f", help="A pipeline's YAML file.")],
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Create or change a pipeline: its dataset, its model's gates, its deployment."""
    from headrace.cli.plain import plain
    from headrace.client import pipeline_file

    async def command(client: HeadraceClient) -> None:
        read = pipeline_file.read(file)
        try:
            pipeline = await client.scheduling.ApplyPipeline(read.request)
        except InvalidArgument as error:
            raise read.explained(error) from error
        if output is not Format.TABLE:
            show_document(plain(pipeline), output)
            return
        console.print(f"pipeline {pipeline.name} applied (generation {pipeline.generation})")

    run(data, command)


def submit(
    pipeline: Annotated[str, typer.Argument(help="The pipeline to run.")],
    version: Annotated[str, typer.Option(help="Dataset version, its number or tag; 0 is the newest.")] = "0",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Queue a training job."""
    from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
    from headrace.cli.dataset import version_request
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        number = read_number(version)
        if number is None:
            # A pipeline has the name of its dataset.
            number = (await client.ingestion.GetVersion(version_request(pipeline, version))).version
        job = await client.scheduling.SubmitJob(
            scheduling.SubmitJobRequest(
                pipeline=pipeline, dataset_version=number, request_id=str(uuid.uuid4())
            )
        )
        if output is Format.TABLE:
            console.print(f"job {job.id} queued; `headrace get jobs {pipeline} --watch` follows it")
        else:
            show_document(plain(job), output)

    run(data, command)


def cancel(
    job: Annotated[str, typer.Argument(help="A job's id.")],
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Cancel a job, whether it waits or runs."""
    from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        row = plain(await client.scheduling.CancelJob(scheduling.CancelJobRequest(id=job)))
        if output is Format.TABLE:
            console.print(f"job {job} is {row['state']}")
        else:
            show_document(row, output)

    run(data, command)


def produce(
    dataset: Annotated[str, typer.Argument(help="The dataset that the samples belong to.")],
    file: Annotated[
        str, typer.Option("--file", "-f", help="JSON lines, a sample each; - reads standard input.")
    ] = "-",
    schema_version: Annotated[
        int, typer.Option(min=0, help="The version of the schema they were written by; 0: the newest.")
    ] = 0,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Publish samples to Kafka, one JSON object a line."""
    from headrace.telemetry.tracing import new_traceparent

    samples = [line for line in _read(file).splitlines() if line.strip()]

    async def command(client: HeadraceClient) -> None:
        traceparent = new_traceparent()
        count = await client.produce(dataset, samples, traceparent=traceparent, schema_version=schema_version)
        if output is Format.TABLE:
            console.print(
                f"{count} samples published; `headrace get datasets` shows them arrive, "
                f"`headrace trace {traceparent.split('-')[1]}` what becomes of them"
            )
        else:
            show_document({"published": count, "traceparent": traceparent}, output)

    run(data, command)


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}", param_hint="--file") from error


def predict(
    deployment: Annotated[str, typer.Argument(help="The deployment to ask.")],
    rows: Annotated[
        str, typer.Option("--data-json", "-d", help="Rows of features: '[[1.0, \"red\"], ...]'.")
    ],
    version: Annotated[str, typer.Option(help="Ask this version instead of the rollout's.")] = "",
    subject: Annotated[
        str, typer.Option(help="Whose data the rows are, by the dataset's key, so that it can be erased.")
    ] = "",
    segment: Annotated[
        str,
        typer.Option(help="What kind of request it is, such as ward=3; `headrace quality` tells them apart."),
    ] = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Ask a model through Envoy, with the Open Inference Protocol."""

    async def command(client: HeadraceClient) -> None:
        try:
            features = json.loads(rows)
        except ValueError as error:
            raise InvalidArgument("INVALID_DATA", f"--data-json is not JSON: {error}") from error
        answer = await client.predict(deployment, features, version=version, subject=subject, segment=segment)
        if output is not Format.TABLE:
            show_document(
                {
                    "id": answer.prediction_id,
                    "model": deployment,
                    "version": answer.version,
                    "outputs": {name: values.tolist() for name, values in answer.outputs.items()},
                },
                output,
            )
            return
        for name, values in answer.outputs.items():
            console.print(Text(f"{name}: {values.tolist()}"))
        console.print(Text(f"version {answer.version}, prediction {answer.prediction_id}", "dim"))

    run(data, command)
