"""`headrace tune`: the best setting of a deployment, by measurement."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from headrace.cli.output import (
    Column,
    ExitCode,
    Format,
    OutputOption,
    console,
    errors,
    field,
    rows_table,
    show_document,
)
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.api.inference.v1 import tuning_pb2 as api
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient

tune_app = typer.Typer(no_args_is_help=True, help="Find the best setting by measurement.")

_TARGET = re.compile(r"p(\d+(?:\.\d+)?)=(.+)")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(tune_app, name="tune")


@tune_app.callback()
def _tune() -> None:
    """Find the best setting by measurement."""


@tune_app.command()
def deployment(
    name: Annotated[str, typer.Argument(help="A deployment's name.")],
    target: Annotated[str, typer.Option(help="What answers may take: p99=20ms, p50=5ms.")],
    rate: Annotated[
        float, typer.Option(min=0, help="Requests a second that come; left out: as many as it can answer.")
    ] = 0,
    max_time: Annotated[str, typer.Option(help="Propose the best found so far after this.")] = "5m",
    max_instances: Annotated[
        int, typer.Option(min=0, max=64, help="Most instances to try; 0: a few, as the cores allow.")
    ] = 0,
    beside_traffic: Annotated[
        bool, typer.Option("--beside-traffic", help="Measure although Triton's machine answers requests.")
    ] = False,
    apply: Annotated[
        bool, typer.Option("--apply", help="Serve the deployment so, where the target is kept.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw what was measured into this file, an SVG.")] = None,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Measure batches, delay and instances on a copy, and propose the setting with the highest throughput.

    Exit code 1 where no setting keeps the target.
    """
    from headrace.api.inference.v1 import tuning_pb2 as api
    from headrace.rpc.convert import to_duration

    share, seconds = _parsed(target)
    length = _seconds(max_time, "--max-time")
    if plot is not None and plot.suffix != ".svg":
        raise typer.BadParameter("is drawn as SVG: name a file that ends in .svg", param_hint="--plot")
    request = api.TuneDeploymentRequest(
        deployment=name,
        target=to_duration(timedelta(seconds=seconds)),
        share=share,
        rate=rate,
        max_time=to_duration(timedelta(seconds=length)),
        max_instances=max_instances,
        beside_traffic=beside_traffic,
        apply=apply,
    )

    async def command(client: HeadraceClient) -> bool:
        start, measurements, proposal = await _followed(client, request)
        if plot is not None:
            from headrace.cli.tuning_plot import drawn

            plot.write_text(drawn(request, measurements, proposal, start.current))
        if output is Format.TABLE:
            _show(request, start, measurements, proposal)
        else:
            from headrace.cli.plain import plain

            document: dict[str, Plain] = {
                "start": plain(start),
                "measurements": [plain(measurement) for measurement in measurements],
                "proposal": plain(proposal),
            }
            show_document(document, output)
        return proposal.keeps_target

    if not run(data, command):
        raise typer.Exit(ExitCode.FAILED)


def _parsed(target: str) -> tuple[float, float]:
    """The share of the requests, and seconds."""
    parts = _TARGET.fullmatch(target.strip())
    share = float(parts[1]) / 100 if parts else 0.0
    if parts is None or not 0 < share < 1:
        raise typer.BadParameter(
            f"names a percentile and a time, such as p99=20ms, not {target!r}", param_hint="--target"
        )
    return share, _seconds(parts[2], "--target")


def _seconds(text: str, option: str) -> float:
    from headrace.client.yaml_reader import seconds_of

    seconds = seconds_of(text)
    if not seconds:
        raise typer.BadParameter(f"must be a time such as 20ms, 90s or 5m, not {text!r}", param_hint=option)
    return seconds


async def _followed(
    client: HeadraceClient, request: api.TuneDeploymentRequest
) -> tuple[api.TuningStart, list[api.TuningMeasurement], api.TuningProposal]:
    """Everything that is answered; with a bar meanwhile, for a person at a terminal."""
    from headrace.api.inference.v1 import tuning_pb2 as api

    start, proposal = api.TuningStart(), api.TuningProposal()
    measurements: list[api.TuningMeasurement] = []
    begun = time.monotonic()
    with _bar() as progress:
        total = request.max_time.ToTimedelta().total_seconds()
        task = progress.add_task(f"tuning {request.deployment}", total=total, last="")
        async for response in client.tuning.TuneDeployment(request):
            step = response.WhichOneof("step")
            if step == "start":
                start = response.start
            elif step == "measurement":
                measurements.append(response.measurement)
                last = (
                    f"{setting_text(response.measurement.setting)}: {_figures(request, response.measurement)}"
                )
                progress.update(task, completed=time.monotonic() - begun, last=last)
            else:
                proposal = response.proposal
    return start, measurements, proposal


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[last]}"),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )


def _show(
    request: api.TuneDeploymentRequest,
    start: api.TuningStart,
    measurements: Sequence[api.TuningMeasurement],
    proposal: api.TuningProposal,
) -> None:
    console.print(
        f"version {start.version} of {request.deployment}, {percentile(request)} of "
        f"{milliseconds(request.target.ToTimedelta())}, with {start.requests}"
    )
    rows = [_row(measurement, start, proposal) for measurement in _best(measurements, proposal)]
    console.print(rows_table(rows, _columns(request)))
    if any(not measurement.stable for measurement in measurements):
        console.print(Text("~ its parts did not agree, or were too few requests for this percentile", "dim"))
    console.print(Text(f"{proposal.message}."), soft_wrap=True)
    if not proposal.complete:
        console.print(Text("The time was over before the search was: more of it may find better.", "dim"))
    if proposal.applied:
        console.print(f"{request.deployment} is served so from now on.")
    elif proposal.changes and proposal.keeps_target:
        console.print(Text("To serve it so, add --apply, or write into the pipeline's deployment:", "dim"))
        console.print(Text(f"  batching: {_batching_text(proposal.setting)}"), soft_wrap=True)
        console.print(f"  instances: {proposal.setting.instances}")


def _best(
    measurements: Sequence[api.TuningMeasurement], proposal: api.TuningProposal
) -> list[api.TuningMeasurement]:
    """Each setting's best measurement, the best setting first; of the proposed one what decided."""

    def worth(measurement: api.TuningMeasurement) -> tuple[bool, float]:
        latency = measurement.latency.ToTimedelta().total_seconds()
        # Where they come at a rate, throughput is the same.
        by_throughput = measurement.keeps_target and measurement.in_flight
        return measurement.keeps_target, measurement.throughput if by_throughput else -latency

    found: dict[str, api.TuningMeasurement] = {}
    for measurement in measurements:
        key = setting_text(measurement.setting)
        found[key] = max(found.get(key, measurement), measurement, key=worth)
    for decisive in (proposal.current, proposal.measurement):
        if decisive.answered:
            found[setting_text(decisive.setting)] = decisive
    return sorted(found.values(), key=worth, reverse=True)


def _row(
    measurement: api.TuningMeasurement, start: api.TuningStart, proposal: api.TuningProposal
) -> dict[str, Plain]:
    from headrace.cli.plain import plain

    marks = [
        word
        for word, setting in (("proposed", proposal.setting), ("current", start.current))
        if setting == measurement.setting
    ]
    return {**plain(measurement), "marks": ", ".join(marks)}


def _columns(request: api.TuneDeploymentRequest) -> Sequence[Column]:
    in_flight = () if request.rate else (field("in flight", "in_flight", right=True),)
    return (
        field("batch", "setting.batching.max_batch_size", right=True),
        Column("delay", lambda row: _delay(row), right=True),
        field("instances", "setting.instances", right=True),
        *in_flight,
        Column("answers/s", lambda row: _number(row["throughput"], ",.0f"), right=True),
        Column("p50", lambda row: _number(row["p50"], ".2f", 1000) + " ms", right=True),
        Column(
            percentile(request),
            lambda row: ("" if row["stable"] else "~") + _number(row["latency"], ".2f", 1000) + " ms",
            right=True,
        ),
        field("in target", "keeps_target"),
        Column("", lambda row: str(row["marks"])),
    )


def _delay(row: dict[str, Plain]) -> str:
    setting = row["setting"]
    assert isinstance(setting, dict)
    batching = setting["batching"]
    assert isinstance(batching, dict)
    return _number(batching["max_queue_delay"], "g", 1000) + " ms"


def _number(value: Plain, form: str, factor: float = 1) -> str:
    assert isinstance(value, int | float)
    return format(value * factor, form)


def setting_text(setting: api.TunedSetting) -> str:
    """A setting in a few words."""
    preferred = ",".join(map(str, setting.batching.preferred))
    return (
        f"batch {setting.batching.max_batch_size}{f' ({preferred})' if preferred else ''}, "
        f"{milliseconds(setting.batching.max_queue_delay.ToTimedelta())}, {setting.instances} inst."
    )


def percentile(request: api.TuneDeploymentRequest) -> str:
    """What the target is about: p99."""
    return f"p{100 * request.share:g}"


def milliseconds(length: timedelta) -> str:
    """As tables and plots have it."""
    return f"{length / timedelta(milliseconds=1):g} ms"


def _figures(request: api.TuneDeploymentRequest, measurement: api.TuningMeasurement) -> str:
    latency = measurement.latency.ToTimedelta() / timedelta(milliseconds=1)
    return f"{measurement.throughput:,.0f}/s, {percentile(request)} {latency:.1f} ms"


def _batching_text(setting: api.TunedSetting) -> str:
    delay = setting.batching.max_queue_delay.ToTimedelta() / timedelta(milliseconds=1)
    parts = [f"max_batch_size: {setting.batching.max_batch_size}", f"max_queue_delay: {delay:g}ms"]
    if setting.batching.preferred:
        parts.append(f"preferred: {list(setting.batching.preferred)}")
    return f"{{{', '.join(parts)}}}"
