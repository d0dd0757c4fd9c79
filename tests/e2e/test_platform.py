"""What users do with a running stack: apply, produce, look, predict, and make mistakes."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import asyncpg
import numpy as np
import psutil
import pytest
from confluent_kafka import Producer
from tests.e2e.conftest import ROOT, Stack, unique

from headrace.messaging.topics import SAMPLES

pytestmark = [pytest.mark.e2e, pytest.mark.broker, pytest.mark.timeout(600)]

DEADLINE = 300.0

PIPELINE = """
apiVersion: headrace.dev/v1
kind: Pipeline
metadata: {{name: {name}}}
spec:
  dataset:
    key: id
    features: {{x: {{type: float32}}, y: {{type: float32}}}}
    label: {{name: above, type: int8, classes: [0, 1]}}
    cut: {{rows: {rows}, seconds: 60}}
  preprocess: {{normalise: standard}}
  training:
    recipe: mlp
    parameters: {{hidden: [8], epochs: {epochs}, learning_rate: {learning_rate}, checkpoint_every: 10}}
    resources: {{cpu: {cpu}, memory: 1Gi}}
  gates:
    - {{metric: accuracy, split: test, min: {gate}}}
  deployment: {{name: {name}}}
  retrain: {{on: [dataset_version]}}
"""


DEFAULTS = {"rows": 200, "gate": 0.8, "cpu": 1, "epochs": 30, "learning_rate": 0.05}


def pipeline(tmp_path: Path, name: str, **changes: float) -> Path:
    file = tmp_path / "pipeline.yaml"
    file.write_text(PIPELINE.format(name=name, **{**DEFAULTS, **changes}))
    return file


def samples(tmp_path: Path, rows: int = 200) -> Path:
    """Points in a square, and whether they lie above its diagonal."""
    draw = random.Random(7)
    file = tmp_path / "samples.jsonl"
    with file.open("w") as out:
        for index in range(rows):
            x, y = draw.uniform(-1, 1), draw.uniform(-1, 1)
            out.write(json.dumps({"id": f"p{index}", "x": x, "y": y, "above": int(y > x)}) + "\n")
    return file


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited {DEADLINE:.0f} s for {what}"
        time.sleep(0.2)


@pytest.fixture(scope="session")
def deployed(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline whose first version answers and has been asked, and one sample that was rejected."""
    tmp_path = tmp_path_factory.mktemp("deployed")
    name = unique("diagonal")
    stack.headrace("apply", "-f", str(pipeline(tmp_path, name)))
    stack.headrace("produce", name, "-f", str(samples(tmp_path)))
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"id": "broken", "x": "wide", "y": 1, "above": 0}\n')
    stack.headrace("produce", name, "-f", str(broken))
    until(lambda: live(stack, name), "the deployment to be ready")
    stack.headrace("predict", name, "-d", "[[-0.9, 0.9]]")
    until(lambda: bool(stack.json("get", "predictions", name)), "the prediction to be logged")
    until(lambda: bool(stack.json("get", "rejected", name)), "the broken sample to be listed")
    return name


def live(stack: Stack, name: str) -> bool:
    rows = [row for row in stack.json("get", "deployments") if row["name"] == name]
    rollout = rows[0]["rollout"] if rows else None
    return bool(rows and rows[0]["ready"] and isinstance(rollout, dict) and rollout["state"] == "SUCCEEDED")


def test_events_become_a_model_that_answers(stack: Stack, deployed: str) -> None:
    answer = json.loads(
        stack.headrace("predict", deployed, "-d", "[[-0.9, 0.9], [0.9, -0.9]]", "-o", "json").stdout
    )
    assert [row[0] if isinstance(row, list) else row for row in answer["outputs"]["label"]] == [1, 0]
    assert answer["version"] == "1"


def test_what_was_asked_about_a_subject_is_erased_from_the_prediction_log(
    stack: Stack, deployed: str
) -> None:
    def ask(*options: str) -> str:
        answer = stack.headrace("predict", deployed, "-d", "[[-0.9, 0.9]]", "-o", "json", *options)
        return str(json.loads(answer.stdout)["id"])

    def logged() -> set[object]:
        return {row["id"] for row in stack.json("get", "predictions", deployed)}

    theirs, others = ask("--subject", "caller"), ask("--subject", "another")
    until(lambda: {theirs, others} <= logged(), "the predictions to be logged")
    erased = stack.headrace("dataset", "erase", deployed, "--key", "caller", "--yes", "-o", "json")
    assert json.loads(erased.stdout)["erasure"]["prediction_count"] in (1, "1")
    assert theirs not in logged()
    assert others in logged()


CATEGORIES = """
apiVersion: headrace.dev/v1
kind: Pipeline
metadata: {{name: {name}}}
spec:
  dataset:
    key: id
    features: {{colour: {{type: string, nullable: true}}, x: {{type: float32}}, shape: {{type: string}}}}
    label: {{name: wanted, type: int8, classes: [0, 1]}}
    cut: {{rows: 200, seconds: 60}}
  preprocess:
    features:
      colour: {{encode: one_hot, missing: {{constant: ""}}, indicator: true}}
      shape: {{encode: ordinal}}
  training:
    recipe: mlp
    parameters: {{hidden: [8], epochs: 60, learning_rate: 0.05}}
  deployment: {{name: {name}}}
  retrain: {{on: [dataset_version]}}
"""


def test_words_become_a_model_that_is_asked_with_words(stack: Stack, tmp_path: Path) -> None:
    name = unique("wanted")
    file, rows = tmp_path / "pipeline.yaml", tmp_path / "samples.jsonl"
    file.write_text(CATEGORIES.format(name=name))
    draw = random.Random(7)
    with rows.open("w") as out:
        for index in range(200):
            colour, shape = draw.choice(["red", "grün", None]), draw.choice(["round", "square"])
            row = {"id": f"p{index}", "colour": colour, "x": draw.random(), "shape": shape}
            out.write(json.dumps({**row, "wanted": int(colour == "red")}) + "\n")
    stack.headrace("apply", "-f", str(file))
    stack.headrace("produce", name, "-f", str(rows))
    until(lambda: live(stack, name), "the deployment to be ready")
    asked = '[["red", 0.5, "round"], ["grün", 0.5, "square"], [null, 0.5, "round"], ["new", 0.5, "new"]]'
    answer = json.loads(stack.headrace("predict", name, "-d", asked, "-o", "json").stdout)
    assert np.ravel(answer["outputs"]["label"]).tolist()[:3] == [1, 0, 0]

    body = {
        "inputs": [
            {"name": "features", "datatype": "FP32", "shape": [1, 1], "data": [0.5]},
            {"name": "texts", "datatype": "BYTES", "shape": [1, 2], "data": ["red", "round"]},
        ]
    }
    url = f"http://{stack.target('inference_protocol')}/v2/models/{name}/infer"
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as response:
        outputs = json.loads(response.read())["outputs"]
    assert [output["data"] for output in outputs if output["name"] == "label"] == [[1]]
    until(lambda: len(stack.json("get", "predictions", name)) == 2, "both predictions to be logged")


@pytest.mark.parametrize(
    ("kind", "scoped"),
    [
        ("datasets", False),
        ("versions", True),
        ("pipelines", False),
        ("jobs", False),
        ("nodes", False),
        ("runs", False),
        ("models", False),
        ("model-versions", True),
        ("deployments", False),
        ("rollouts", True),
        ("rejected", True),
        ("predictions", True),
    ],
)
def test_everything_can_be_seen_as_table_and_as_json(
    stack: Stack, deployed: str, kind: str, scoped: bool
) -> None:
    scope = [deployed] if scoped else []
    rows = stack.json("get", kind, *scope)
    assert rows
    table = stack.headrace("get", kind, *scope).stdout
    assert len(table.splitlines()) > len(rows)
    name = described_name(kind, rows[0])
    one = json.loads(stack.headrace("describe", kind, name, "-o", "json").stdout)
    assert one
    assert stack.headrace("describe", kind, name).stdout


def described_name(kind: str, row: dict[str, object]) -> str:
    if kind in {"versions", "model-versions"}:
        return f"{row.get('dataset') or row['model']}/{row['version']}"
    if kind == "rejected":
        return f"{row['partition']}/{row['offset']}"
    return str(row.get("name") or row["id"])


def test_events_can_be_read_and_found(stack: Stack, deployed: str) -> None:
    rows = stack.json("get", "events", "dataset-versions")
    mine = [row for row in rows if row["subject"] == deployed]
    assert mine[0]["type"] == "headrace.ingestion.dataset-version-committed.v1"
    found = json.loads(stack.headrace("describe", "event", str(mine[0]["id"]), "-o", "json").stdout)
    assert found["subject"] == deployed


def test_a_finished_job_explains_itself(stack: Stack, deployed: str) -> None:
    [job] = stack.json("get", "jobs", deployed)
    why = stack.headrace("why", str(job["id"])).stdout
    assert "NOT_PENDING" in why


def test_a_job_that_can_never_fit_names_the_largest_node(stack: Stack, tmp_path: Path) -> None:
    name = unique("huge")
    stack.headrace("apply", "-f", str(pipeline(tmp_path, name, cpu=9999)))
    stack.headrace("produce", name, "-f", str(samples(tmp_path)))
    until(lambda: bool(stack.json("get", "jobs", name)), "the job")
    [job] = stack.json("get", "jobs", name)
    why = json.loads(stack.headrace("why", str(job["id"]), "-o", "json").stdout)
    assert why["reason"] == "NEVER_FITS"
    assert why["nodes"][0]["node"] in why["message"]
    stack.headrace("cancel", str(job["id"]))


def test_a_gate_that_is_not_met_deploys_nothing(stack: Stack, tmp_path: Path) -> None:
    name = unique("impossible")
    stack.headrace("apply", "-f", str(pipeline(tmp_path, name, gate=1.1)))
    stack.headrace("produce", name, "-f", str(samples(tmp_path)))
    until(
        lambda: bool(jobs := stack.json("get", "jobs", name)) and jobs[0]["state"] == "SUCCEEDED",
        "the job to end",
    )
    [version] = stack.json("get", "model-versions", name)
    assert version["state"] == "REFUSED"
    results = version["gate_results"]
    assert isinstance(results, list)
    assert isinstance(results[0], dict)
    assert "at least 1.1 is asked for" in str(results[0]["message"])
    [deployment] = [row for row in stack.json("get", "deployments") if row["name"] == name]
    assert not deployment["ready"]


def test_bad_events_are_listed_with_their_reasons(stack: Stack, deployed: str) -> None:
    attributes = {
        "ce_specversion": "1.0",
        "ce_source": "e2e",
        "ce_type": "headrace.ingestion.sample.v1",
        "ce_subject": deployed,
        "content-type": "application/json",
    }
    producer = Producer({"bootstrap.servers": stack.target("kafka"), "message.max.bytes": 4 << 20})
    bad: dict[str, tuple[dict[str, str], bytes]] = {
        "INVALID_CLOUDEVENT": ({"ce_specversion": "0.1"}, b"{}"),
        "SCHEMA_VIOLATION": ({}, b'{"id": "p", "x": "wide", "y": 1, "above": 0}'),
        "OVERSIZE_EVENT": ({}, b'{"id": "' + b"p" * (1 << 20) + b'"}'),
    }
    for reason, (changes, value) in bad.items():
        headers = {"ce_id": f"{deployed}-{reason}", **attributes, **changes}
        producer.produce(SAMPLES, value, key=deployed, headers=list(headers.items()))
    assert producer.flush(30) == 0

    def found() -> dict[str, dict[str, object]]:
        rows = stack.json("get", "rejected")
        return {str(row["reason"]): row for row in rows if str(row["event_id"]).startswith(deployed)}

    until(lambda: set(bad) <= set(found()), "the rejected events")
    violation = found()["SCHEMA_VIOLATION"]
    assert violation["field"] == "x"
    assert "float32" in str(violation["message"])


def test_a_run_that_cannot_succeed_says_why_and_is_not_tried_again(stack: Stack, tmp_path: Path) -> None:
    name = unique("diverging")
    stack.headrace("apply", "-f", str(pipeline(tmp_path, name, learning_rate=1e30)))
    stack.headrace("produce", name, "-f", str(samples(tmp_path)))
    until(
        lambda: bool(jobs := stack.json("get", "jobs", name)) and jobs[0]["state"] == "FAILED",
        "the job to fail",
    )
    [job] = stack.json("get", "jobs", name)
    assert "a smaller learning_rate may help" in str(job["message"])
    assert (job["reason"], job["attempt"]) == ("DIVERGED", 1)
    assert stack.json("get", "model-versions", name) == []


@pytest.mark.kill
def test_a_killed_run_is_tried_again_from_its_checkpoint(stack: Stack, tmp_path: Path) -> None:
    name = unique("killed")
    stack.headrace("apply", "-f", str(pipeline(tmp_path, name, epochs=3000)))
    stack.headrace("produce", name, "-f", str(samples(tmp_path)))

    def runs() -> list[dict[str, object]]:
        return [run for run in stack.json("get", "runs") if run["pipeline"] == name]

    until(
        lambda: bool(started := runs()) and int(str(started[0]["epoch"])) > 20, "the run to save a checkpoint"
    )
    [first] = runs()
    [process] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if "headrace.training.run" in (process.info["cmdline"] or [])
        and str(first["id"]) in process.info["cmdline"][-1]
    ]
    process.kill()
    until(lambda: stack.json("get", "jobs", name)[0]["state"] == "SUCCEEDED", "the job to end")
    second, first = runs()
    assert (first["state"], second["state"]) == ("FAILED", "SUCCEEDED")
    assert "killed by SIGKILL" in str(first["message"])
    assert int(str(second["resumed_epoch"])) >= 10
    assert len(stack.json("get", "model-versions", name)) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("recipe: mlp", "recipe: nothing"), "mlp"),
        (("hidden: [8]", "hiddden: [8]"), "hidden"),
        (("  gates:", "  gaits:"), "gates"),
        (("learning_rate: 0.05", "learning_rate: -1"), "learning_rate"),
    ],
)
def test_a_mistake_in_a_pipeline_file_is_pointed_at(
    stack: Stack, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    file = pipeline(tmp_path, unique("wrong"))
    file.write_text(file.read_text().replace(*change))
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if change[1] in text)
    failed = stack.headrace("apply", "-f", str(file), check=False)
    assert failed.returncode == 5
    assert says in failed.stderr
    assert f"{line}" in failed.stderr


def test_unknown_things_have_their_own_exit_code(stack: Stack) -> None:
    assert stack.headrace("describe", "dataset", "nobody", check=False).returncode == 3
    assert stack.headrace("get", "rollouts", "nobody", check=False).returncode == 3
    assert stack.headrace("predict", "nobody", "-d", "[[1]]", check=False).returncode == 3


async def test_one_trace_joins_who_took_part(stack: Stack, deployed: str) -> None:
    """Who emits what, and who calls whom, from the exported spans."""
    [job] = stack.json("get", "jobs", deployed)
    traceparent = str(job["traceparent"])
    targets = json.loads((stack.data / "stack.json").read_text())["targets"]
    connection = await asyncpg.connect(targets["postgres"])
    wanted = {
        ("headrace-ingestion", "headrace-scheduling"),
        ("headrace-scheduling", "headrace-training"),
        ("headrace-training", "headrace-registry"),
        ("headrace-registry", "headrace-inference"),
    }
    edges: set[tuple[str, str]] = set()
    deadline = time.monotonic() + 30
    try:
        while not wanted <= edges and time.monotonic() < deadline:
            rows = await connection.fetch(
                "SELECT DISTINCT p.service AS caller, c.service AS called FROM telemetry.spans c "
                "JOIN telemetry.spans p ON p.span_id = c.parent_span_id AND p.trace_id = c.trace_id "
                "WHERE c.trace_id = $1 AND p.service <> c.service",
                traceparent.split("-")[1],
            )
            edges = {(row["caller"], row["called"]) for row in rows}
        spans = await connection.fetch(
            "SELECT DISTINCT service, name FROM telemetry.spans WHERE trace_id = $1",
            traceparent.split("-")[1],
        )
    finally:
        await connection.close()
    assert wanted <= edges
    names = {(row["service"], row["name"]) for row in spans}
    assert {
        ("headrace-ingestion", "commit dataset table"),
        ("headrace-ingestion", "cut dataset version"),
        ("headrace-scheduling", "place job"),
        ("headrace-registry", "evaluate gates"),
        ("headrace-inference", "roll out version"),
        ("headrace-inference", "shift traffic"),
    } <= names
    drawn = stack.headrace("trace", "--job", str(job["id"])).stdout
    for service in ("ingestion", "scheduling", "training", "registry", "inference"):
        assert f"headrace-{service}" in drawn


def test_the_linear_regression_example_runs(stack: Stack) -> None:
    finished = subprocess.run(
        [sys.executable, "examples/linear-regression/run.py", "--data", str(stack.data)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "least squares" in finished.stdout
