"""The demo says that it succeeded only where it did."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from headrace.errors import Internal


@pytest.fixture
def demo(demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, with a stack that starts and stops at once, and a story without events."""
    spec = importlib.util.spec_from_file_location("demo_program", demo_folder / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def run(_data: Path, _stages: object) -> None: ...

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "fresh_folder", lambda: tmp_path)
    monkeypatch.setattr(module.commands, "up", lambda *_, **__: None)
    monkeypatch.setattr(module.commands, "down", lambda *_: None)
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["demo", "--keep"])
    return module


def fail_with(error: BaseException) -> object:
    async def run(_data: Path, _stages: object) -> None:
        raise error

    return run


def test_a_story_without_a_failure_is_a_success(demo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main() == 0
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
    demo: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: Exception,
    said: str,
) -> None:
    stopped: list[Path] = []
    monkeypatch.setattr(demo, "run", fail_with(error))
    monkeypatch.setattr(demo.commands, "down", stopped.append)
    assert demo.main() == 1
    out = capsys.readouterr().out
    assert said in out
    assert f"Logs: {tmp_path / 'logs'}" in out
    assert "as it should be" not in out
    assert stopped == [tmp_path]


def test_a_check_that_does_not_hold_is_a_failure(
    demo: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(_data: Path, stages: object) -> None:
        stages.check("water flows upwards", holds=False)  # type: ignore[attr-defined]

    monkeypatch.setattr(demo, "run", run)
    assert demo.main() == 1
    assert "failed: water flows upwards" in capsys.readouterr().out


def test_a_stack_that_does_not_stop_is_a_failure(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(_data: Path) -> None:
        raise OSError("no such process")

    monkeypatch.setattr(demo.commands, "down", down)
    assert demo.main() == 1


def test_ctrl_c_has_the_exit_code_that_shells_know(demo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "run", fail_with(KeyboardInterrupt()))
    assert demo.main() == 130
