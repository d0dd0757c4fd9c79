"""Commands about models that were trained elsewhere: model import, model deploy."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.output import ExitCode, Format, OutputOption, cell, console, show_document
from headrace.cli.session import DEFAULT_DATA, DataOption, run
from headrace.errors import InvalidArgument
from headrace.model_formats import ModelFormat

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.api.registry.v1 import registry_pb2 as registry
    from headrace.client import HeadraceClient

model_app = typer.Typer(no_args_is_help=True, help="Models that were trained elsewhere.")

_FORMATS = {form.lower().replace("_", "-"): form for form in ModelFormat}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    model_app.command("import")(import_file)
    model_app.command()(deploy)
    app.add_typer(model_app, name="model")


def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            help="The model's file: .onnx, .pt (TorchScript) or .pt2 (torch.export); or a Python package's "
            "folder."
        ),
    ],
    name: Annotated[str, typer.Option(help="The model that it is a version of; made where there is none.")],
    signature: Annotated[
        Path | None,
        typer.Option(
            help="A YAML file that says what the model takes and gives; of a folder its signature.yaml "
            "where left out."
        ),
    ] = None,
    form: Annotated[
        str, typer.Option("--format", help=f"{', '.join(_FORMATS)}; by the file's ending where left out.")
    ] = "",
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT/METRIC=VALUE", help="What the model's gates judge: test/accuracy=0.95."),
    ] = None,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Register a model's file, or a Python package, as the next version of a model, which its gates judge."""
    from headrace.api.registry.v1 import registry_pb2 as registry
    from headrace.cli.plain import plain
    from headrace.client.model_import import format_of, import_model
    from headrace.client.python_package import SIGNATURE, packed
    from headrace.client.signature_file import read_signature

    async def command(client: HeadraceClient) -> bool:
        chosen = _format_named(form) if form else format_of(file)
        if file.is_dir() and chosen is not ModelFormat.PYTHON:
            raise InvalidArgument(
                "UNKNOWN_MODEL_FORMAT", f"{file} is a folder, which only a Python package is"
            )
        measured = dict(map(_metric, metric or ()))
        if signature is None and not file.is_dir():
            raise InvalidArgument("SIGNATURE_MISSING", "--signature says what the model takes and gives")
        said = read_signature(signature or file / SIGNATURE)
        with packed(file) if file.is_dir() else nullcontext(file) as packed_file:
            version = await import_model(client, name, packed_file, chosen, said, measured)
        promoted = version.state == registry.MODEL_VERSION_STATE_PROMOTED
        if output is not Format.TABLE:
            show_document(plain(version), output)
        elif promoted:
            console.print(
                f"version {version.version} of {name} is promoted; `headrace model deploy {name}` serves it"
            )
        else:
            console.print(f"version {version.version} of {name} is refused: {_missed(version)}")
        return promoted

    if not run(data, command):
        raise typer.Exit(ExitCode.FAILED)


def deploy(
    name: Annotated[str, typer.Argument(help="A model.")],
    deployment: Annotated[str, typer.Option(help="What clients call it; the model's name if left out.")] = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Serve a model: its newest promoted version now, and later ones as they are promoted."""
    from headrace.client.model_import import deploy_model

    called = deployment or name

    async def command(client: HeadraceClient) -> None:
        made = await deploy_model(client, name, called)
        if output is not Format.TABLE:
            show_document({"deployment": called, "model": name, "created": made}, output)
            return
        told = "serves" if made else "already serves"
        console.print(
            f"deployment {called} {told} model {name}; `headrace rollout status {called} --watch` follows it"
        )

    run(data, command)


def _format_named(text: str) -> ModelFormat:
    found = _FORMATS.get(text)
    if found is None:
        raise InvalidArgument(
            "UNKNOWN_MODEL_FORMAT", f"there is no format {text!r}; there are: {', '.join(_FORMATS)}"
        )
    return found


def _metric(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise InvalidArgument(
            "INVALID_METRIC", f"--metric is SPLIT/METRIC=VALUE, such as test/accuracy=0.95, not {text!r}"
        ) from error


def _missed(version: registry.ModelVersion) -> str:
    return "; ".join(cell(result.message) for result in version.gate_results if not result.passed)
