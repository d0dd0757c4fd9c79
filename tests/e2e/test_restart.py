"""`headrace down` and `up` bring everything back: with either broker, and without training again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.e2e.conftest import BROKER, Stack, unique
from tests.e2e.test_platform import live, pipeline, samples, until

from headrace.embedded import commands

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(600)]


def rows_of(stack: Stack, name: str) -> int:
    [dataset] = [row for row in stack.json("get", "datasets") if row["name"] == name]
    return int(str(dataset["row_count"]))


def more_samples(file: Path, count: int) -> Path:
    rows = [json.loads(line) for line in samples(file.parent, count).read_text().splitlines()]
    file.write_text("".join(json.dumps({**row, "id": f"later-{row['id']}"}) + "\n" for row in rows))
    return file


def test_a_restarted_stack_answers_and_goes_on(stack: Stack, tmp_path: Path) -> None:
    name = unique("restarted")
    stack.headrace("apply", "-f", str(pipeline(tmp_path, name)))
    stack.headrace("produce", name, "-f", str(samples(tmp_path)))
    until(lambda: live(stack, name), "the deployment to be ready")
    jobs = len(stack.json("get", "jobs", name))

    commands.down(stack.data)
    commands.up(stack.data, broker=BROKER, tied=True)

    until(
        lambda: stack.headrace("predict", name, "-d", "[[-0.9, 0.9]]", check=False).returncode == 0,
        "the model to answer after the restart",
    )
    # The embedded broker's offsets begin at zero again, and must not be taken for those stored before.
    stack.headrace("produce", name, "-f", str(more_samples(tmp_path / "later.jsonl", 50)))
    until(lambda: rows_of(stack, name) == 250, "samples of after the restart to be stored")
    assert len(stack.json("get", "jobs", name)) == jobs
