"""What a person sees while a stack comes up."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from headrace.embedded.options import choose
from headrace.embedded.progress import following, show_summary, table
from headrace.embedded.stack_file import PartState, PartStatus, Stack, StackState


def stack(data: Path, *parts: PartStatus, **options: str) -> Stack:
    return Stack(
        pid=1,
        state=StackState.STARTING,
        options=choose(data, **options),
        parts={part.name: part for part in parts},
        targets={},
        kafka_idempotence=False,
        logs=data / "logs",
    )


def part(name: str, state: PartState, **fields: object) -> PartStatus:
    return PartStatus.model_validate({"name": name, "state": state, **fields})


def piped() -> tuple[Console, io.StringIO]:
    written = io.StringIO()
    return Console(file=written, width=100), written


def test_a_pipe_gets_one_line_for_each_part_that_comes_up(tmp_path: Path) -> None:
    console, written = piped()
    ready = part("broker", PartState.READY, address="127.0.0.1:9092", seconds=1.25)
    with following(console) as show:
        show(stack(tmp_path, part("broker", PartState.STARTING)))
        show(stack(tmp_path, ready))
        show(stack(tmp_path, ready, part("postgres", PartState.STARTING)))
        show(stack(tmp_path, ready, part("postgres", PartState.READY, seconds=2.0)))
    lines = written.getvalue().splitlines()
    assert [line.split()[2:4] for line in lines] == [["broker", "ready"], ["postgres", "ready"]]
    assert "127.0.0.1:9092" in lines[0]


def test_a_pipe_is_told_what_takes_long(tmp_path: Path) -> None:
    console, written = piped()
    with following(console) as show:
        for _ in range(2):
            show(stack(tmp_path, part("broker", PartState.STARTING, message="Maven gets Apache Kafka, once")))
    assert written.getvalue().count("Maven gets Apache Kafka") == 1


def test_a_pipe_gets_a_line_for_each_restart(tmp_path: Path) -> None:
    console, written = piped()
    with following(console) as show:
        for restarts in (1, 1, 2):
            what = part("triton", PartState.RESTARTING, restarts=restarts, message="ended with exit code -9")
            show(stack(tmp_path, what))
    assert written.getvalue().count("ended with exit code -9") == 2


def test_a_terminal_gets_every_part_with_its_state(tmp_path: Path) -> None:
    console, written = piped()
    states = [part(str(state), state) for state in PartState]
    console.print(table(stack(tmp_path, *states), {}))
    for state in PartState:
        assert state in written.getvalue()


def test_the_summary_says_that_memory_forgets(tmp_path: Path) -> None:
    up = part("broker", PartState.READY, seconds=4.2)
    console, written = piped()
    show_summary(stack(tmp_path, up), new=True, console=console)
    assert "4.2 s" in written.getvalue()
    assert "in memory only" in written.getvalue()
    console, written = piped()
    show_summary(stack(tmp_path, up, broker="kafka"), new=True, console=console)
    assert "in memory only" not in written.getvalue()


def test_the_summary_warns_of_an_open_address(tmp_path: Path) -> None:
    console, written = piped()
    show_summary(stack(tmp_path, part("broker", PartState.READY), host="0.0.0.0"), new=True, console=console)
    assert "no authentication" in " ".join(written.getvalue().split())
