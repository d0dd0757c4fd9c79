"""Commands about datasets' versions: versions, cut, show, diff, tag, untag, pin, unpin, export, replay."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from headrace.cli.numbers import read_number
from headrace.cli.output import (
    ExitCode,
    Format,
    OutputOption,
    console,
    show_document,
    show_rows,
)
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
    from headrace.api.ingestion.v1 import versions_pb2 as versions
    from headrace.client import HeadraceClient

dataset_app = typer.Typer(
    no_args_is_help=True, help="Datasets: their versions, files for them, and what comes in."
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The dataset.")]
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", help="A version's number, or its tag.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.add_typer(dataset_app, name="dataset")


@dataset_app.command("versions")
def list_versions(
    name: NameArgument, output: OutputOption = Format.TABLE, data: DataOption = DEFAULT_DATA
) -> None:
    """List a dataset's versions, newest first."""
    from headrace.cli.kinds import kind_named

    async def command(client: HeadraceClient) -> None:
        kind = kind_named("versions")
        show_rows(await kind.list(client, name), kind.columns, output)

    run(data, command)


@dataset_app.command()
def cut(name: NameArgument, output: OutputOption = Format.TABLE, data: DataOption = DEFAULT_DATA) -> None:
    """Cut a version of all that is stored, now; where nothing is new, tell the last one."""
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion

    async def command(client: HeadraceClient) -> None:
        found = await client.ingestion.CommitVersion(ingestion.CommitVersionRequest(dataset=name))
        _show_change(found, f"version {found.version} of {name} has {found.row_count} rows", output)

    run(data, command)


@dataset_app.command()
def show(
    name: NameArgument,
    version: Annotated[
        str, typer.Argument(metavar="[VERSION]", help="A version's number, or its tag; else the newest.")
    ] = "",
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Show what a version's rows look like."""
    from headrace.api.ingestion.v1 import versions_pb2 as versions
    from headrace.cli import profiles
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        found = await _find(client, name, version)
        profile = await client.dataset_versions.GetProfile(
            versions.GetProfileRequest(dataset=name, version=versions.VersionName(number=found.version))
        )
        if output is Format.TABLE:
            profiles.show_version(found)
            if found.HasField("split_counts"):
                profiles.show_splits(found.split_counts)
            profiles.show_profile(profile)
        else:
            show_document({"version": plain(found), "profile": plain(profile)}, output)

    run(data, command)


@dataset_app.command()
def diff(
    name: NameArgument,
    base: Annotated[str, typer.Argument(metavar="V1", help="The version to compare with; number or tag.")],
    other: Annotated[str, typer.Argument(metavar="V2", help="The version that is compared.")],
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Compare two versions field by field."""
    from headrace.api.ingestion.v1 import versions_pb2 as versions
    from headrace.cli import profiles
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        request = versions.DiffVersionsRequest(
            dataset=name, base=_version_name(base), other=_version_name(other)
        )
        found = await client.dataset_versions.DiffVersions(request)
        if output is Format.TABLE:
            profiles.show_diff(found)
        else:
            show_document(plain(found), output)

    run(data, command)


@dataset_app.command()
def tag(
    name: NameArgument,
    version: VersionArgument,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="Its new name: golden, before-the-move, ...")],
    force: Annotated[
        bool, typer.Option("--force", help="Take the tag from the version that has it.")
    ] = False,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Name a version; every command takes the name in place of the number."""
    from headrace.api.ingestion.v1 import versions_pb2 as versions

    async def command(client: HeadraceClient) -> None:
        request = versions.TagVersionRequest(
            dataset=name, version=_version_name(version), tag=tag, force=force
        )
        found = await client.dataset_versions.TagVersion(request)
        _show_change(found, f"version {found.version} of {name} is {tag}", output)

    run(data, command)


@dataset_app.command()
def untag(
    name: NameArgument,
    tag: Annotated[str, typer.Argument(metavar="TAG", help="The name to take away.")],
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Take a tag away; its version stays."""
    from headrace.api.ingestion.v1 import versions_pb2 as versions

    async def command(client: HeadraceClient) -> None:
        await client.dataset_versions.UntagVersion(versions.UntagVersionRequest(dataset=name, tag=tag))
        console.print(f"no version of {name} is {tag} any more")

    run(data, command)


@dataset_app.command()
def pin(
    name: NameArgument,
    version: VersionArgument,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Keep a version whatever retention says."""
    from headrace.api.ingestion.v1 import versions_pb2 as versions

    async def command(client: HeadraceClient) -> None:
        request = versions.PinVersionRequest(dataset=name, version=_version_name(version))
        found = await client.dataset_versions.PinVersion(request)
        _show_change(found, f"version {found.version} of {name} is pinned", output)

    run(data, command)


@dataset_app.command()
def unpin(
    name: NameArgument,
    version: VersionArgument,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Let retention decide about a version again."""
    from headrace.api.ingestion.v1 import versions_pb2 as versions

    async def command(client: HeadraceClient) -> None:
        request = versions.UnpinVersionRequest(dataset=name, version=_version_name(version))
        found = await client.dataset_versions.UnpinVersion(request)
        _show_change(found, f"version {found.version} of {name} is not pinned", output)

    run(data, command)


@dataset_app.command()
def export(
    name: NameArgument,
    version: VersionArgument,
    to: Annotated[Path, typer.Option("--to", help="The file: .parquet, .csv or .jsonl.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Write what is stored encrypted as it came. It is logged.")
    ] = False,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Write a version's rows to a file."""
    from headrace.cli.progress import rows_bar
    from headrace.client.export import export_version

    async def command(client: HeadraceClient) -> None:
        with rows_bar() as progress:
            bar = progress.add_task("rows")
            written = await export_version(
                client,
                name,
                _version_name(version),
                to,
                overwrite=force,
                reveal=reveal,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        console.print(Text(f"{written} rows written to {to}"), soft_wrap=True)

    run(data, command)


@dataset_app.command()
def replay(
    name: NameArgument,
    version: VersionArgument,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """Read a version's events from their topic again, and say whether they still make the same rows.

    Nothing is stored. Exits with 1 where the hash is another one.
    """
    from headrace.api.ingestion.v1 import versions_pb2 as versions
    from headrace.cli.plain import plain
    from headrace.cli.progress import rows_bar

    async def command(client: HeadraceClient) -> versions.ReplayVersionResponse:
        request = versions.ReplayVersionRequest(dataset=name, version=_version_name(version))
        answer = versions.ReplayVersionResponse()
        with rows_bar() as progress:
            bar = progress.add_task("rows")
            async for answer in client.dataset_versions.ReplayVersion(request):
                progress.update(bar, completed=answer.replayed_count, total=answer.row_count)
        return answer

    answer = run(data, command)
    if output is not Format.TABLE:
        show_document(plain(answer), output)
    else:
        verdict = "the same hash" if answer.result.same else "another hash"
        console.print(
            f"{answer.replayed_count} of {answer.row_count} rows replayed: {verdict}, "
            f"{answer.result.content_hash[:12]}"
        )
    if not answer.result.same:
        raise typer.Exit(ExitCode.FAILED)


async def _find(client: HeadraceClient, name: str, version: str) -> ingestion.DatasetVersion:
    """The version of that number or tag; the newest where it is ""."""
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
    from headrace.errors import FailedPrecondition

    if not version:
        latest = (await client.ingestion.GetDataset(ingestion.GetDatasetRequest(name=name))).latest_version
        if not latest:
            raise FailedPrecondition(
                "NO_VERSION", f"{name} has no version yet; send samples and wait for the cut"
            )
        version = str(latest)
    return await client.ingestion.GetVersion(version_request(name, version))


def version_request(dataset: str, version: str) -> ingestion.GetVersionRequest:
    """The request for a version by its number or its tag."""
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion

    number = read_number(version)
    if number is None:
        return ingestion.GetVersionRequest(dataset=dataset, tag=version)
    return ingestion.GetVersionRequest(dataset=dataset, version=number)


def _version_name(version: str) -> versions.VersionName:
    from headrace.api.ingestion.v1 import versions_pb2 as versions

    number = read_number(version)
    return versions.VersionName(tag=version) if number is None else versions.VersionName(number=number)


def _show_change(found: ingestion.DatasetVersion, sentence: str, output: Format) -> None:
    from headrace.cli.plain import plain

    if output is Format.TABLE:
        console.print(sentence)
    else:
        show_document(plain(found), output)
