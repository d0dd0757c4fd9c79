"""A story says that it succeeded only where it did."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from examples.shared import stack
from examples.shared.stages import Stages

from headrace.errors import Internal

Told = Callable[[Stages], Awaitable[None]]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Told], int]:
    """Tells a story to a stack that starts and stops at once; the exit code."""
    monkeypatch.setattr(stack, "_fresh_folder", lambda _name: tmp_path)
    monkeypatch.setattr(stack.commands, "up", lambda *_, **__: None)
    monkeypatch.setattr(stack.commands, "down", lambda *_: None)
    monkeypatch.setattr(stack.signal, "signal", lambda *_: None)

    def tells(told: Told) -> int:
        async def in_stack(_name: str, _data: Path, _tell: object, stages: Stages) -> None:
            await told(stages)

        monkeypatch.setattr(stack, "_told", in_stack)
        return stack.in_own_stack("demo", no_story, broker="embedded", keep=True)

    return tells


async def no_story(_client: object, _stages: Stages) -> None: ...


async def nothing_fails(_stages: Stages) -> None: ...


def failing_with(error: BaseException) -> Told:
    async def told(_stages: Stages) -> None:
        raise error

    return told


def test_a_story_without_a_failure_is_a_success(
    tell: Callable[[Told], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tell(nothing_fails) == 0
    assert "Everything is as it should be." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "failed: TimeoutError()"),
        (TimeoutError("waited 120 s for a job"), "failed: waited 120 s for a job"),
        (KeyError("accuracy"), "failed: 'accuracy'"),
        (Internal("STACK_FAILED", "the stack did not start"), "failed: the stack did not start"),
        (ExceptionGroup("several", [OSError()]), "failed: several"),
    ],
)
def test_an_error_of_any_type_is_a_failure(
    tell: Callable[[Told], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: Exception,
    said: str,
) -> None:
    stopped: list[Path] = []
    monkeypatch.setattr(stack.commands, "down", stopped.append)
    assert tell(failing_with(error)) == 1
    out = capsys.readouterr().out
    assert said in out
    assert f"Logs: {tmp_path / 'logs'}" in out
    assert "as it should be" not in out
    assert stopped == [tmp_path]


def test_a_failure_is_told_with_its_stage(
    tell: Callable[[Told], int], capsys: pytest.CaptureFixture[str]
) -> None:
    async def told(stages: Stages) -> None:
        with stages.stage("Pour water"):
            raise OSError("no water")

    assert tell(told) == 1
    assert "failed: Pour water: no water" in capsys.readouterr().out


def test_a_check_that_does_not_hold_is_a_failure(
    tell: Callable[[Told], int], capsys: pytest.CaptureFixture[str]
) -> None:
    async def told(stages: Stages) -> None:
        stages.check("water flows upwards", holds=False)

    assert tell(told) == 1
    assert "failed: water flows upwards" in capsys.readouterr().out


def test_a_stack_that_does_not_stop_is_a_failure(
    tell: Callable[[Told], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(_data: Path) -> None:
        raise OSError("no such process")

    monkeypatch.setattr(stack.commands, "down", down)
    assert tell(nothing_fails) == 1


def test_ctrl_c_has_the_exit_code_that_shells_know(tell: Callable[[Told], int]) -> None:
    assert tell(failing_with(KeyboardInterrupt())) == 130
