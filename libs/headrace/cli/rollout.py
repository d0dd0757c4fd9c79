"""`headrace rollout`: watch and steer a deployment's rollout."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from headrace.cli.output import (
    Column,
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

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.api.inference.v1 import inference_pb2 as inference
    from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient

rollout_app = typer.Typer(no_args_is_help=True, help="Watch and steer a deployment's rollout.")

DeploymentArgument = Annotated[str, typer.Argument(help="A deployment's name.")]

ENDED = ("SUCCEEDED", "ROLLED_BACK", "FAILED")
BAR_WIDTH = 40
LATENCIES = ("LATENCY_P50", "LATENCY_P99")


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(rollout_app, name="rollout")


@rollout_app.command()
def status(
    deployment: DeploymentArgument,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow it until it has ended.")] = False,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Show the rollout in progress, or the last one: its step, and how the new version does."""
    from headrace.api.inference.v1 import inference_pb2 as inference

    async def command(client: HeadraceClient) -> None:
        if watch:
            await _watch(client, deployment, output)
            return
        found = await client.inference.GetDeployment(inference.GetDeploymentRequest(name=deployment))
        _show(found, output)

    run(data, command)


@rollout_app.command()
def history(
    deployment: DeploymentArgument, output: OutputOption = Format.TABLE, data: DataOption = DEFAULT_DATA
) -> None:
    """List a deployment's rollouts, newest first."""
    from headrace.cli.kinds import kind_named

    async def command(client: HeadraceClient) -> None:
        kind = kind_named("rollouts")
        show_rows(await kind.list(client, deployment), kind.columns, output)

    run(data, command)


@rollout_app.command()
def pause(
    deployment: DeploymentArgument, output: OutputOption = Format.TABLE, data: DataOption = DEFAULT_DATA
) -> None:
    """Keep the rollout where it is; it is still sent back where its version does harm."""
    from headrace.api.inference.v1 import inference_pb2 as inference

    request = inference.PauseRolloutRequest(deployment=deployment)
    _steer(lambda client: client.inference.PauseRollout(request), output, data)


@rollout_app.command()
def resume(
    deployment: DeploymentArgument, output: OutputOption = Format.TABLE, data: DataOption = DEFAULT_DATA
) -> None:
    """Let a paused rollout go on."""
    from headrace.api.inference.v1 import inference_pb2 as inference

    request = inference.ResumeRolloutRequest(deployment=deployment)
    _steer(lambda client: client.inference.ResumeRollout(request), output, data)


@rollout_app.command()
def promote(
    deployment: DeploymentArgument, output: OutputOption = Format.TABLE, data: DataOption = DEFAULT_DATA
) -> None:
    """Give the new version all traffic now, whatever its steps and its judgement."""
    from headrace.api.inference.v1 import inference_pb2 as inference

    request = inference.PromoteRolloutRequest(deployment=deployment)
    _steer(lambda client: client.inference.PromoteRollout(request), output, data)


@rollout_app.command()
def abort(
    deployment: DeploymentArgument, output: OutputOption = Format.TABLE, data: DataOption = DEFAULT_DATA
) -> None:
    """Take the traffic back to the version before."""
    from headrace.api.inference.v1 import inference_pb2 as inference

    request = inference.AbortRolloutRequest(deployment=deployment)
    _steer(lambda client: client.inference.AbortRollout(request), output, data)


def _steer(
    call: Callable[[HeadraceClient], Awaitable[inference.Deployment]], output: Format, data: DataOption
) -> None:
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        deployment = await call(client)
        row = plain(deployment.rollout)
        if output is Format.TABLE:
            console.print(f"rollout of {deployment.name} is {_state(row)}: {cell(row['message'])}")
        else:
            show_document(row, output)

    run(data, command)


def _show(deployment: inference.Deployment, output: Format) -> None:
    from headrace.cli.plain import plain

    if output is not Format.TABLE:
        show_document(plain(deployment.rollout), output)
    elif deployment.HasField("rollout"):
        console.print(_drawn(deployment))
    else:
        console.print(f"deployment {deployment.name} has had no rollout yet")


async def _watch(client: HeadraceClient, deployment: str, output: Format) -> None:
    """Follow a rollout to its end: drawn where somebody looks, else a line for each change."""
    from headrace.api.inference.v1 import inference_pb2 as inference
    from headrace.cli.plain import plain

    seen = client.inference.WatchDeployment(inference.WatchDeploymentRequest(name=deployment))
    if output is Format.TABLE and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            async for found in seen:
                live.update(_drawn(found), refresh=True)
                if plain(found.rollout)["state"] in ENDED:
                    return
        return
    last = ""
    async for found in seen:
        row = plain(found.rollout)
        line = _line(row)
        if output is not Format.TABLE:
            show_document(row, output)
        elif line != last:
            console.print(line)
        last = line
        if row["state"] in ENDED:
            return


def _line(row: dict[str, Plain]) -> str:
    versions = f"v{row['from_version']} -> v{row['to_version']}"
    return f"{versions}  {_state(row)}  {row['weight']}%  {cell(row['message'])}"


def _state(row: dict[str, Plain]) -> str:
    return f"{row['state']}, paused" if row["paused"] else str(row["state"])


def _drawn(deployment: inference.Deployment) -> RenderableType:
    """A rollout's line, the new version's share as a bar, and what it is judged by."""
    from headrace.cli.plain import plain

    row = plain(deployment.rollout)
    steps = _steps(deployment.rollout_spec, row)
    filled = round(BAR_WIDTH * deployment.rollout.weight / 100)
    parts: list[RenderableType] = [
        Text(_line(row)),
        Text(f"{'█' * filled}{'░' * (BAR_WIDTH - filled)}  steps {steps}"),
    ]
    judgement = row["judgement"]
    if isinstance(judgement, dict) and isinstance(findings := judgement["findings"], list):
        parts.append(Text(f"verdict {judgement['verdict']}"))
        parts.append(rows_table([found for found in findings if isinstance(found, dict)], COLUMNS))
    return Group(*parts)


def _steps(spec: scheduling.RolloutSpec, row: dict[str, Plain]) -> str:
    """The plan in a line, with the place where the rollout is in brackets."""
    at = {"SHADOWING": "shadow", "PROGRESSING": row["step"]}.get(str(row["state"]))
    stages: list[tuple[Plain, str]] = [("shadow", "shadow")] if spec.HasField("shadow") else []
    stages += [(index, str(weight)) for index, weight in enumerate(spec.steps)]
    return " ".join(f"[{name}]" if stage == at else name for stage, name in stages)


def _value(name: str) -> Callable[[dict[str, Plain]], str]:
    def text(row: dict[str, Plain]) -> str:
        value = row[name]
        if not isinstance(value, int | float):
            return "-"
        return f"{1000 * value:.3g} ms" if row["criterion"] in LATENCIES else f"{value:.2%}"

    return text


def _effect(row: dict[str, Plain]) -> str:
    """The interval of the true effect, in the unit of what is allowed."""
    return f"{_difference(row, 'low')}..{_difference(row, 'high')}"


def _limit(row: dict[str, Plain]) -> str:
    return _difference(row, "limit")


def _difference(row: dict[str, Plain], name: str) -> str:
    value = row[name]
    if not isinstance(value, int | float):
        return "?"
    return f"{value:.2f}x" if row["criterion"] in LATENCIES else f"{value:+.1%}"


def _samples(row: dict[str, Plain]) -> str:
    return f"{cell(row['new_samples'])}/{cell(row['old_samples'])}"


# Narrow enough for a terminal of eighty characters.
COLUMNS = (
    field("criterion", "criterion"),
    field("standing", "standing"),
    Column("new", _value("new_value"), right=True),
    Column("old", _value("old_value"), right=True),
    Column("surely in", _effect, right=True),
    Column("allowed", _limit, right=True),
    Column("samples", _samples, right=True),
)
