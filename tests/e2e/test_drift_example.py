"""`examples/drift`: what became of it is asked of the platform, not read from what it prints."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.e2e.conftest import ROOT, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

NAME = "scanner"


def run_example(stack: Stack) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.drift", "--data", str(stack.data)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
    )


@pytest.fixture(scope="module")
def shifted(stack: Stack) -> Stack:
    """The stack after the example."""
    finished = run_example(stack)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return stack


def described(stack: Stack, kind: str, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(stack.headrace("describe", kind, name, "-o", "json").stdout)
    return found


def drift_of(stack: Stack) -> dict[str, object]:
    found: dict[str, object] = json.loads(stack.headrace("drift", NAME, "-o", "json").stdout)
    return found


def test_the_shift_is_noticed_and_told_of_once(shifted: Stack) -> None:
    events = [row for row in shifted.json("get", "events", "inference.alerts") if row["subject"] == NAME]
    begun, ended = sorted(events, key=lambda row: str(row["time"]))
    assert begun["type"] == "headrace.inference.drift-detected.v1"
    assert ended["type"] == "headrace.inference.drift-ended.v1"
    told = begun["data"]
    assert isinstance(told, dict)
    assert told["episode"]["model_version"] == 1
    lengths = {"radius", "perimeter", "area"}
    assert told["episode"]["columns"]
    assert all(lengths & set(column.split("_")) for column in told["episode"]["columns"])
    assert all(finding["p_value"] <= 0.01 and finding["psi"] >= 0.2 for finding in told["window"]["findings"])


def test_the_alert_starts_one_job_and_nobody_else_does(shifted: Stack) -> None:
    [retraining] = described(shifted, "pipeline", NAME)["retrainings"]
    second, first = shifted.json("get", "jobs", NAME)
    assert (retraining["state"], retraining["job"]) == ("STARTED", second["id"])
    assert (first["state"], second["state"]) == ("SUCCEEDED", "SUCCEEDED")
    assert (first["dataset_version"], first["model_version"]) == (1, 1)
    assert int(str(second["dataset_version"])) > 1


def test_its_version_goes_through_the_same_gates_and_a_canary(shifted: Stack) -> None:
    second, first = shifted.json("get", "model-versions", NAME)
    for version in (first, second):
        assert version["state"] == "PROMOTED"
        assert [(result["gate"]["metric"], result["passed"]) for result in version["gate_results"]] == [
            ("accuracy", True),
            ("recall", True),
        ]
    canary, _ = shifted.json("get", "rollouts", NAME)
    assert (canary["from_version"], canary["to_version"], canary["state"]) == (1, 2, "SUCCEEDED")
    judged = {finding["criterion"]: finding for finding in canary["judgement"]["findings"]}
    assert judged["QUALITY"]["standing"] == "WITHIN"
    assert judged["QUALITY"]["new_samples"] >= 50


def test_the_new_version_is_calm_and_better(shifted: Stack) -> None:
    drift = drift_of(shifted)
    assert (drift["model_version"], drift["state"]) == (2, "CALM")
    [episode] = drift["episodes"]
    assert (episode["model_version"], episode["end_reason"]) == (1, "REPLACED")
    quality = described(shifted, "deployment", NAME)["quality"]
    accuracy = {one["version"]: one["metrics"]["accuracy"] for one in quality["versions"]}
    assert accuracy[2] > accuracy[1]


def test_it_is_told_to_a_new_stack_only_and_says_so(shifted: Stack) -> None:
    again = run_example(shifted)
    assert again.returncode == 1
    assert "failed: Apply examples/drift/pipeline.yaml: this stack has a pipeline scanner" in again.stdout
