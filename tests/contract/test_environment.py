"""What the lock files cannot promise by themselves, and when an environment is filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Makes what uv would make, and notes what it was asked for.
UV = """\
#!/bin/sh
echo "$*" >> "$(dirname "$0")/asked"
[ "$1" = venv ] || exit 0
for folder; do :; done
mkdir -p "$folder/bin" && ln -sf /bin/sh "$folder/bin/python"
"""


@pytest.fixture
def fill(tmp_path: Path) -> Callable[[], list[str]]:
    """Fill an environment; returns what uv was asked to do."""
    uv, lock = tmp_path / "uv", tmp_path / "lock"
    uv.write_text(UV)
    uv.chmod(0o755)
    lock.write_text("nothing==1\n")

    def run() -> list[str]:
        asked = tmp_path / "asked"
        asked.unlink(missing_ok=True)
        script = ROOT / "tools" / "fill_environment.sh"
        subprocess.run(
            [script, "it", tmp_path / "env", lock, uv, "python3"],
            check=True,
            capture_output=True,
            env={"PATH": os.environ["PATH"]},
        )
        lines = asked.read_text().splitlines() if asked.exists() else []
        return [" ".join(line.split()[:2]).removesuffix(" --quiet") for line in lines]

    return run


def test_a_filled_environment_is_left_alone(fill: Callable[[], list[str]]) -> None:
    assert fill() == ["venv", "pip sync"]
    assert fill() == []


def test_an_environment_whose_python_has_gone_is_made_anew(
    fill: Callable[[], list[str]], tmp_path: Path
) -> None:
    fill()
    python = tmp_path / "env" / "bin" / "python"
    python.unlink()
    python.symlink_to(tmp_path / "upgraded-away")
    assert fill() == ["venv", "pip sync"]


def test_an_environment_whose_lock_has_changed_is_filled_again(
    fill: Callable[[], list[str]], tmp_path: Path
) -> None:
    fill()
    (tmp_path / "lock").write_text("nothing==2\n")
    assert fill() == ["pip sync"]


def test_opentelemetrys_messages_are_not_xds_protos_old_copy() -> None:
    from opentelemetry.proto.trace.v1 import trace_pb2

    assert "scope_spans" in trace_pb2.ResourceSpans.DESCRIPTOR.fields_by_name
