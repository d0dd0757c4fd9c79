"""What `headrace dataset` and `headrace import` say before they ask a service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from headrace.cli.main import app
from headrace.cli.output import ExitCode

Headrace = Callable[..., Result]


@pytest.fixture
def headrace(tmp_path: Path) -> Headrace:
    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, env={"HEADRACE_DATA": str(tmp_path / "no-stack")})

    return command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.csv"
    path.write_text("id,x,y\np1,1.5,0\np2,2.5,1\n")
    return path


def test_a_schema_is_inferred_without_a_stack(headrace: Headrace, file: Path) -> None:
    result = headrace("dataset", "infer", str(file), "--strict")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "# 2 rows of a.csv were looked at.\n"
        "dataset:\n"
        "  key: id  # named like a key, and unique in this file\n"
        "  features:\n"
        "    x: {type: float32, min: 1.5, max: 2.5}\n"
        "  label: {name: y, type: int8, classes: [0, 1]}  # named like a label\n"
    )


def test_one_file_at_a_time_is_inferred_from(headrace: Headrace, file: Path) -> None:
    file.with_name("b.csv").write_text("id\n")
    result = headrace("dataset", "infer", str(file.with_name("*.csv")))
    assert result.exit_code == ExitCode.INVALID
    assert "SEVERAL_FILES" in result.stderr


def test_a_file_that_is_not_there_is_not_found(headrace: Headrace, file: Path) -> None:
    result = headrace("dataset", "infer", str(file.with_name("none.csv")))
    assert result.exit_code == ExitCode.NOT_FOUND
    assert "none.csv" in result.stderr


@pytest.mark.parametrize("arguments", [("dataset", "validate"), ("import",)])
def test_files_need_a_dataset(headrace: Headrace, file: Path, arguments: tuple[str, ...]) -> None:
    assert headrace(*arguments, str(file)).exit_code == ExitCode.USAGE


@pytest.mark.parametrize("arguments", [("dataset", "validate"), ("import",)])
def test_no_stack_is_unavailable_and_says_what_to_do(
    headrace: Headrace, file: Path, arguments: tuple[str, ...]
) -> None:
    result = headrace(*arguments, str(file), "--dataset", "d")
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert "headrace up" in result.stderr
