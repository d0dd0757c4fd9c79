"""A progress bar of rows, for a person at a terminal."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from headrace.cli.output import errors


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} rows/s" if speed else "", "dim")


def rows_bar() -> Progress:
    """Shown on stderr while it is entered, where stderr is a terminal, and gone afterwards."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    )
