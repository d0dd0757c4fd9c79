"""What the command prints: tables for people, JSON and YAML for programs, errors that say what to do next."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.errors import ErrorKind, HeadraceError

if TYPE_CHECKING:
    from headrace.cli.plain import Plain

# Where nobody looks at a screen there is no width to keep to.
PIPED_WIDTH = 200

console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
errors = Console(stderr=True, highlight=False)


class Format(enum.StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[
    Format, typer.Option("--output", "-o", help="Table for people, json or yaml for programs.")
]


class ExitCode(enum.IntEnum):
    """Exit codes that scripts can use."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNAVAILABLE = 4
    INVALID = 5
    CONFLICT = 6
    TIMEOUT = 7
    INTERRUPTED = 130


_EXIT_CODES = {
    ErrorKind.NOT_FOUND: ExitCode.NOT_FOUND,
    ErrorKind.UNAVAILABLE: ExitCode.UNAVAILABLE,
    ErrorKind.INVALID_ARGUMENT: ExitCode.INVALID,
    ErrorKind.FAILED_PRECONDITION: ExitCode.CONFLICT,
    ErrorKind.ALREADY_EXISTS: ExitCode.CONFLICT,
    ErrorKind.ABORTED: ExitCode.CONFLICT,
    ErrorKind.DEADLINE_EXCEEDED: ExitCode.TIMEOUT,
}

_NEXT_STEPS = {
    ErrorKind.UNAVAILABLE: "Is the stack up? `headrace status` shows it, `headrace up` starts it.",
    ErrorKind.DEADLINE_EXCEEDED: "The service was too slow; `headrace status` shows its health and logs.",
    ErrorKind.INTERNAL: "This is a fault of Headrace's own; `headrace logs SERVICE` shows more.",
}


# Up to there each whole number is a float.
_EXACT = 2**53


@dataclass(frozen=True)
class Column:
    """One column of a table: its heading, and its text made from a row."""

    heading: str
    text: Callable[[dict[str, Plain]], str]
    right: bool = False


def field(heading: str, path: str, *, right: bool = False) -> Column:
    """A column that shows one field, by dotted path; nothing where it is absent."""

    def text(row: dict[str, Plain]) -> str:
        value: Plain = row
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return cell(value)

    return Column(heading, text, right)


def cell(value: Plain) -> str:
    """A value as a table shows it."""
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # A length of time in seconds may have many digits, all of which count.
        return f"{value:.0f}" if value.is_integer() and abs(value) < _EXACT else f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(map(cell, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}={cell(item)}" for key, item in value.items())
    return printable(str(value))


def printable(text: str) -> str:
    """The text with escapes for what a terminal would obey instead of showing it."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode()
        for character in text
    )


def show_rows(rows: Sequence[dict[str, Plain]], columns: Sequence[Column], output: Format) -> None:
    """Print a list."""
    if output is Format.TABLE:
        console.print(rows_table(rows, columns))
    else:
        show_document(list(rows), output)


def rows_table(rows: Sequence[dict[str, Plain]], columns: Sequence[Column]) -> Table:
    """A list as a table."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column.heading, justify="right" if column.right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(column.text(row)) for column in columns))
    return drawn


def show_document(document: Plain, output: Format) -> None:
    """Print one thing, whole."""
    if output is Format.JSON:
        sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    elif output is Format.YAML:
        import yaml

        sys.stdout.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True))
    else:
        for line in described(document):
            console.print(Text(line), soft_wrap=True)


def described(document: Plain, depth: int = 0) -> list[str]:
    """A nested document as indented lines, empty parts left out."""
    indent = "  " * depth
    if isinstance(document, dict):
        shown = {key: value for key, value in document.items() if value not in (None, "", [], {})}
        width = max((len(key) for key, value in shown.items() if _is_flat(value)), default=0)
        result = []
        for key, value in shown.items():
            if _is_flat(value):
                result.append(f"{indent}{key + ':':<{width + 1}} {cell(value)}")
            else:
                result += [f"{indent}{key}:", *described(value, depth + 1)]
        return result
    if isinstance(document, list):
        result = []
        for item in document:
            first, *rest = described(item, depth + 1) or [f"{indent}  -"]
            result += [f"{indent}- {first.strip()}", *rest]
        return result
    return [f"{indent}{cell(document)}"]


def _is_flat(value: Plain) -> bool:
    if isinstance(value, list):
        return all(not isinstance(item, dict | list) for item in value)
    return not isinstance(value, Mapping)


def show_error(error: HeadraceError) -> ExitCode:
    """Print an error for a person on stderr, and say which exit code it means."""
    errors.print(
        Text.assemble(("error: ", "bold red"), error.message, (f"  [{error.reason}]", "dim")), soft_wrap=True
    )
    # With one field at fault the message mostly says it all.
    shown = () if len(error.fields) == 1 and error.fields[0].description in error.message else error.fields
    for violation in shown:
        errors.print(
            Text.assemble("  ", (violation.field, "bold"), ": ", violation.description), soft_wrap=True
        )
    next_step = error.metadata.get("next") or _NEXT_STEPS.get(error.kind)
    if next_step:
        errors.print(Text(next_step, "dim"), soft_wrap=True)
    return _EXIT_CODES.get(error.kind, ExitCode.FAILED)
