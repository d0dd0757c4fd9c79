"""A stack as it comes up: a live table in a terminal, a line for each change elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from headrace.embedded.options import EMBEDDED
from headrace.embedded.stack_file import PartState, PartStatus, Stack

_STYLES = {
    PartState.WAITING: "dim",
    PartState.STARTING: "yellow",
    PartState.READY: "green",
    PartState.UNREADY: "red",
    PartState.RESTARTING: "red",
    PartState.STOPPING: "yellow",
    PartState.STOPPED: "dim",
}
_IN_PROGRESS = (PartState.STARTING, PartState.RESTARTING, PartState.STOPPING)


@contextmanager
def following(console: Console | None = None) -> Iterator[Callable[[Stack], None]]:
    """Yield what shows a stack's state each time it is called."""
    console = console or Console(stderr=True, highlight=False)
    if console.is_terminal:
        # Spinners persist between frames, or they would never turn.
        spinners: dict[str, Spinner] = {}
        with Live(console=console, refresh_per_second=10, transient=False) as live:
            yield lambda stack: live.update(table(stack, spinners))
    else:
        yield _Lines(console)


def table(stack: Stack, spinners: dict[str, Spinner]) -> Table:
    """The parts with their states."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("part", "state", "after", "address", ""):
        drawn.add_column(heading, justify="right" if heading == "after" else "left")
    for part in stack.parts.values():
        state: Text | Spinner = Text(part.state, _STYLES[part.state])
        if part.state in _IN_PROGRESS:
            state = spinners.setdefault(f"{part.name} {part.state}", Spinner("dots", text=state))
        seconds = f"{part.seconds:.1f} s" if part.state is PartState.READY else ""
        drawn.add_row(part.name, state, seconds, part.address, Text(part.message, "dim"))
    return drawn


class _Lines:
    """One line for each part that is ready, in trouble, or has something to say."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seen: dict[str, tuple[PartState, int]] = {}

    def __call__(self, stack: Stack) -> None:
        for part in stack.parts.values():
            now = (part.state, part.restarts)
            worth_telling = part.state in (PartState.READY, PartState.RESTARTING) or part.message
            if self._seen.get(part.name) != now and worth_telling:
                self._console.print(Text(_line(part)), soft_wrap=True)
            self._seen[part.name] = now


def _line(part: PartStatus) -> str:
    return f"{part.seconds:6.1f} s  {part.name:<12} {part.state:<11} {part.address} {part.message}".rstrip()


def show_summary(stack: Stack, *, new: bool, console: Console | None = None) -> None:
    """What a person should know of a stack that is up."""
    console = console or Console(highlight=False)
    options = stack.options
    seconds = max(part.seconds for part in stack.parts.values())
    lines = [f"The stack is up after {seconds:.1f} s." if new else "The stack runs already."]
    lines.append(f"Data: {_shown(options.data)}  Logs: {_shown(stack.logs)}")
    if options.broker == EMBEDDED:
        lines.append(
            "Events are kept in memory only and are gone when the stack stops; "
            "`headrace up --broker kafka` keeps them."
        )
    if not options.on_loopback:
        lines.append(
            f"It listens on {options.host}: whoever can reach this machine can use it, there is no "
            "authentication yet."
        )
    lines.append("Next: `headrace status`, `headrace apply -f PIPELINE.yaml`, `headrace down`.")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def show_note(text: str) -> None:
    """A line about what is being done."""
    Console(stderr=True, highlight=False).print(Text(text), soft_wrap=True)


def _shown(path: Path) -> str:
    """A path relative to where the user stands, if it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
