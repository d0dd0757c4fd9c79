"""The command about a dataset's schemas: dataset schemas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.dataset import NameArgument, dataset_app
from headrace.cli.output import Format, OutputOption, field, show_document, show_rows
from headrace.cli.session import DEFAULT_DATA, DataOption, run

# Everything else is imported by the command that needs it, so that `headrace --help` is quick.
if TYPE_CHECKING:
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
    from headrace.cli.plain import Plain
    from headrace.client import HeadraceClient

_VERSIONS = (
    field("version", "version", right=True),
    field("fields", "fields", right=True),
    field("changes", "changes"),
    field("applied", "create_time"),
)
_FIELDS = (
    field("field", "name"),
    field("is", "place"),
    field("type", "type"),
    field("nullable", "nullable"),
    field("default", "default_value"),
    field("min", "min", right=True),
    field("max", "max", right=True),
    field("values", "allowed_values"),
    field("pattern", "pattern"),
)


def register(_app: typer.Typer) -> None:
    """Add this module's command."""
    dataset_app.command()(schemas)


def schemas(
    name: NameArgument,
    version: Annotated[
        int,
        typer.Argument(metavar="[VERSION]", min=0, help="Show the fields of this one.", show_default=False),
    ] = 0,
    output: OutputOption = Format.TABLE,
    data: DataOption = DEFAULT_DATA,
) -> None:
    """List the versions of a dataset's schema, newest first: what each of them changed."""
    from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
    from headrace.cli.plain import plain

    async def command(client: HeadraceClient) -> None:
        request = ingestion.ListSchemasRequest(dataset=name)
        known = (await client.ingestion.ListSchemas(request)).schemas
        if version:
            found = _find(name, version, known)
            if output is Format.TABLE:
                show_rows([*_field_rows(found.schema)], _FIELDS, output)
            else:
                show_document(plain(found), output)
        elif output is Format.TABLE:
            show_rows([*_version_rows(known)], _VERSIONS, output)
        else:
            show_document([plain(each) for each in known], output)

    run(data, command)


def _find(name: str, version: int, known: Sequence[ingestion.DatasetSchema]) -> ingestion.DatasetSchema:
    from headrace.errors import NotFound

    for each in known:
        if each.version == version:
            return each
    raise NotFound(
        "SCHEMA_NOT_FOUND", f"{name} knows no schema {version}; `headrace dataset schemas {name}` lists them"
    )


def _version_rows(known: Sequence[ingestion.DatasetSchema]) -> Iterator[dict[str, Plain]]:
    from headrace.cli.plain import plain

    changes = ["; ".join(_changes(older.schema, newer.schema)) for newer, older in pairwise(known)]
    for each, changed in zip(known, [*changes, ""], strict=True):
        # And the key.
        yield {**plain(each), "fields": len(_places(each.schema)) + 1, "changes": changed}


def _field_rows(schema: ingestion.Schema) -> Iterator[dict[str, Plain]]:
    from headrace.cli.plain import plain

    yield {"name": schema.key, "place": "key", "type": "STRING"}
    for place, each in _places(schema).values():
        yield {**plain(each), "place": place}


def _places(schema: ingestion.Schema) -> dict[str, tuple[str, ingestion.Field]]:
    """All fields but the key, by name, and what they are there."""
    groups = (("feature", schema.features), ("label", [schema.label]), ("attribute", schema.attributes))
    return {each.name: (place, each) for place, fields in groups for each in fields}


def _changes(old: ingestion.Schema, new: ingestion.Schema) -> Iterator[str]:
    """What became another, in words."""
    before, after = _places(old), _places(new)
    added = [name for name in after if name not in before]
    removed = [name for name in before if name not in after]
    if added:
        yield f"added {', '.join(added)}"
    if removed:
        yield f"removed {', '.join(removed)}"
    for name in after:
        if name in before and before[name] != after[name]:
            yield f"{name}: {', '.join(_differences(before[name], after[name]))}"
    kept = [name for name in before if name in after]
    if kept != [name for name in after if name in before]:
        yield "another order"


def _differences(old: tuple[str, ingestion.Field], new: tuple[str, ingestion.Field]) -> Iterator[str]:
    from headrace.cli.output import cell
    from headrace.cli.plain import plain

    (old_place, old_field), (new_place, new_field) = old, new
    before = {"is": old_place, **plain(old_field)}
    after = {"is": new_place, **plain(new_field)}
    for name, value in after.items():
        if before[name] != value:
            yield f"{name} {cell(before[name])} → {cell(value)}"
