"""Commands against services that answer what a test says."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.duration_pb2 import Duration
from prometheus_client import start_http_server
from tests.support.cli import Headrace, Services

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.api.training.v1 import training_pb2 as training
from headrace.cli.look import _kinds
from headrace.cli.output import ExitCode
from headrace.embedded import commands
from headrace.embedded.stack_file import PartState, PartStatus
from headrace.errors import FailedPrecondition, InvalidArgument, NotFound
from headrace.rpc.convert import to_timestamp

JOB = "4f7f2b3e-7b0c-4a9f-9a5e-0d3c9c0f6a11"
SMALL = """\
apiVersion: headrace.dev/v1
kind: Pipeline
metadata: {name: small}
spec:
  dataset: {key: id, features: {x: float64}, label: {name: y, type: float64}}
  training: {recipe: mlp}
"""


def job(state: scheduling.JobState.ValueType = scheduling.JOB_STATE_QUEUED) -> scheduling.Job:
    return scheduling.Job(
        id=JOB,
        pipeline="small",
        dataset_version=1,
        state=state,
        message="waits for a node",
        create_time=to_timestamp(datetime(2026, 1, 2, tzinfo=UTC)),
    )


def test_a_list_is_a_table_for_people(services: Services, headrace: Headrace) -> None:
    services.answers["ListJobs"] = lambda _: scheduling.ListJobsResponse(jobs=[job()])
    result = headrace("get", "jobs", "small")
    assert result.exit_code == 0, result.output
    heading, row = result.stdout.splitlines()
    assert heading.split()[:2] == ["id", "pipeline"]
    assert row.split()[:4] == [JOB, "small", "1", "QUEUED"]
    assert services.requests[0].pipeline == "small"


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_a_list_is_a_document_for_programs(
    services: Services, headrace: Headrace, form: str, read: Callable[[str], Any]
) -> None:
    services.answers["ListJobs"] = lambda _: scheduling.ListJobsResponse(jobs=[job()])
    (row,) = read(headrace("get", "jobs", "-o", form).stdout)
    assert (row["id"], row["state"], row["dataset_version"]) == (JOB, "QUEUED", 1)
    assert row["create_time"] == "2026-01-02T00:00:00.000Z"
    assert row["end_time"] is None


def test_every_page_is_read(services: Services, headrace: Headrace) -> None:
    pages = iter(
        [
            ingestion.ListDatasetsResponse(datasets=[ingestion.Dataset(name="a")], next_page_token="more"),
            ingestion.ListDatasetsResponse(datasets=[ingestion.Dataset(name="b")]),
        ]
    )
    services.answers["ListDatasets"] = lambda _: next(pages)
    result = headrace("get", "datasets", "-o", "json")
    assert [row["name"] for row in json.loads(result.stdout)] == ["a", "b"]
    assert services.requests[1].page_token == "more"


def test_a_thing_is_described(services: Services, headrace: Headrace) -> None:
    services.answers["GetJob"] = lambda _: job()
    assert "waits for a node" in headrace("describe", "job", JOB).stdout
    assert json.loads(headrace("describe", "jobs", JOB, "-o", "json").stdout)["message"] == "waits for a node"


def test_how_long_a_dataset_keeps_things_is_described_to_the_second(
    services: Services, headrace: Headrace
) -> None:
    dataset = ingestion.Dataset(name="d", retention=ingestion.Retention(rows=Duration(seconds=7_776_001)))
    services.answers["GetDataset"] = lambda _: dataset
    assert "retention:\n  rows: 7776001\n" in headrace("describe", "dataset", "d").stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFound("JOB_NOT_FOUND", "there is no such job"), 3),
        (InvalidArgument("INVALID_REQUEST", "id: must be a valid UUID"), 5),
        (FailedPrecondition("NO_ROLLOUT", "nothing is being rolled out"), 6),
    ],
)
def test_an_error_is_told_on_stderr_and_by_the_exit_code(
    services: Services, headrace: Headrace, error: Exception, code: int
) -> None:
    def fail(_: object) -> None:
        raise error

    services.answers["GetJob"] = fail
    result = headrace("describe", "job", JOB)
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {error}")


def test_no_stack_is_unavailable_and_says_what_to_do(headrace: Headrace) -> None:
    result = headrace("get", "jobs")
    assert result.exit_code == 4
    assert "headrace up" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [["get"], ["get", "jobs", "-o", "xml"], ["trace"], ["predict", "d"], ["produce", "d", "-f", "no"]],
)
def test_wrong_usage_exits_with_2(headrace: Headrace, arguments: list[str]) -> None:
    assert headrace(*arguments).exit_code == 2


def test_an_unknown_kind_names_those_that_exist(services: Services, headrace: Headrace) -> None:
    result = headrace("get", "jbos")
    assert result.exit_code == 5
    assert "model-versions" in result.stderr


def test_what_belongs_to_something_asks_for_it(services: Services, headrace: Headrace) -> None:
    result = headrace("get", "versions")
    assert result.exit_code == 5
    assert "headrace get versions DATASET" in result.stderr


def test_apply_sends_the_pipeline(services: Services, headrace: Headrace, tmp_path: Path) -> None:
    services.answers["ApplyPipeline"] = lambda request: scheduling.Pipeline(name=request.name, generation=1)
    file = tmp_path / "pipeline.yaml"
    file.write_text(SMALL)
    result = headrace("apply", "-f", str(file))
    assert result.exit_code == 0, result.output
    assert "pipeline small applied (generation 1)" in result.stdout
    assert services.requests[0].spec.training.recipe == "mlp"


def test_apply_tells_a_mistake_with_its_place(services: Services, headrace: Headrace, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(SMALL.replace("recipe", "recpie"))
    result = headrace("apply", "-f", str(file))
    assert result.exit_code == 5
    assert f"{file}:6:14: spec.training.recpie: unknown key 'recpie'; did you mean 'recipe'?" in result.stderr
    assert not services.requests


def test_submit_and_cancel(services: Services, headrace: Headrace) -> None:
    services.answers["SubmitJob"] = lambda _: job()
    services.answers["CancelJob"] = lambda _: job(scheduling.JOB_STATE_CANCELLED)
    assert JOB in headrace("submit", "small", "--version", "2").stdout
    assert services.requests[0].dataset_version == 2
    assert services.requests[0].request_id
    assert headrace("cancel", JOB).stdout == f"job {JOB} is CANCELLED\n"


def test_why_explains(services: Services, headrace: Headrace) -> None:
    services.answers["WhyPending"] = lambda _: scheduling.WhyPendingResponse(
        state=scheduling.JOB_STATE_QUEUED,
        reason="NEVER_FITS",
        message="it needs 64 cores, and the largest node has 2",
        nodes=[scheduling.WhyPendingResponse.NodeVerdict(node="a", verdict="TOO_SMALL", detail="2 cores")],
        ahead=["other"],
        ahead_count=1,
    )
    result = headrace("why", JOB)
    assert result.exit_code == 0, result.output
    for part in ("QUEUED", "NEVER_FITS", "the largest node has 2", "TOO_SMALL", "1 ahead: other"):
        assert part in result.stdout


def test_logs_of_a_job_are_those_of_its_newest_run(services: Services, headrace: Headrace) -> None:
    services.answers["ListRuns"] = lambda _: training.ListRunsResponse(runs=[training.Run(id=f"{JOB}-2")])
    services.answers["StreamLogs"] = lambda _: [
        training.StreamLogsResponse(lines=["epoch 1"]),
        training.StreamLogsResponse(lines=["epoch 2", "done"]),
    ]
    assert headrace("logs", JOB).stdout == "epoch 1\nepoch 2\ndone\n"
    assert services.requests[1].id == f"{JOB}-2"


def test_logs_of_a_part_are_there_after_a_start_that_failed(headrace: Headrace, tmp_path: Path) -> None:
    logs = tmp_path / "no-stack" / "logs"
    logs.mkdir(parents=True)
    (logs / "triton.log").write_text("there is no environment\n")
    result = headrace("logs", "triton")
    assert result.exit_code == 0, result.output
    assert "there is no environment" in result.stdout
    assert headrace("logs", "envoy").exit_code == 4


@pytest.mark.parametrize("name", ["2", "e-2", "0/7", "headrace.ingestion.samples.v1/0/7"])
def test_a_rejected_sample_is_described_by_what_the_list_shows(
    services: Services, headrace: Headrace, name: str
) -> None:
    topic = "headrace.ingestion.samples.v1"
    services.answers["ListRejected"] = lambda _: ingestion.ListRejectedResponse(
        rejected=[
            ingestion.RejectedSample(
                id=number, event_id=f"e-{number}", topic=topic, offset=5 + number, reason="WHY"
            )
            for number in (1, 2)
        ]
    )
    services.answers["GetRejected"] = lambda request: ingestion.RejectedSample(
        id=request.id, event_id=f"e-{request.id}"
    )
    row = headrace("get", "rejected").stdout.splitlines()[2]
    assert row.split()[:3] == ["2", "0/7", "e-2"]
    assert json.loads(headrace("describe", "rejected", name, "-o", "json").stdout)["event_id"] == "e-2"


@pytest.mark.parametrize(
    "arguments",
    [
        ("dataset", "show", "small", "{}"),
        ("dataset", "diff", "small", "1", "{}"),
        ("describe", "version", "small/{}"),
        ("describe", "model-version", "small/{}"),
        ("submit", "small", "--version", "{}"),
        ("rejected", "replay", "7", "{}"),
        ("rejected", "discard", "{}", "--because", "no"),
    ],
)
@pytest.mark.parametrize("number", [str(2**63), "1" * 5000])
def test_a_number_that_no_service_can_be_asked_for_is_refused(
    headrace: Headrace, services: Services, arguments: tuple[str, ...], number: str
) -> None:
    refused = headrace(*(argument.format(number) for argument in arguments))
    assert refused.exit_code == ExitCode.USAGE, refused.output
    assert not services.requests


def rejected_event(**changes: Any) -> ingestion.RejectedSample:
    return ingestion.RejectedSample(
        **{
            "id": 17,
            "dataset": "small",
            "reason": "SCHEMA_VIOLATION",
            "message": "x is -1, below 0\x1b[2J",
            "state": ingestion.REJECTED_STATE_PENDING,
            "key": b"\xff\x00",
            "payload": b'{"x": -1,\n "note": "\x1b[2J"}',
            "headers": {"ce_id": b"e-17", "trace": b"\xff"},
            **changes,
        }
    )


def test_rejected_events_are_listed_by_what_is_asked_and_page_by_page(
    services: Services, headrace: Headrace
) -> None:
    services.answers["ListRejected"] = lambda request: ingestion.ListRejectedResponse(
        rejected=[rejected_event(id=20 - len(request.page_token))], next_page_token=request.page_token + "x"
    )
    asked = ("rejected", "list", "--dataset", "small", "--reason", "schema_violation", "--state", "pending")
    result = headrace(*asked, "--limit", "2", "-o", "json")
    assert result.exit_code == 0, result.output
    assert [row["id"] for row in json.loads(result.stdout)] == [20, 19]
    assert "--page xx" in result.stderr
    first, second = services.requests
    assert (first.dataset, first.reason, first.page_size) == ("small", "SCHEMA_VIOLATION", 2)
    assert first.state == ingestion.REJECTED_STATE_PENDING
    assert (second.page_token, second.page_size) == ("x", 1)
    row = headrace(*asked, "--limit", "1", "--page", "xx").stdout.splitlines()[1]
    assert row.split()[:6] == ["18", "0/0", "-", "small", "PENDING", "SCHEMA_VIOLATION"]


def test_a_rejected_event_is_shown_so_that_a_terminal_does_not_obey_it(
    services: Services, headrace: Headrace
) -> None:
    services.answers["GetRejected"] = lambda _: rejected_event()
    result = headrace("rejected", "show", "17")
    assert result.exit_code == 0, result.output
    assert "x is -1, below 0" in result.stdout
    assert "  ce_id: e-17\n" in result.stdout
    assert 'payload (26 bytes):\n  {"x": -1,\n   "note": "\\x1b[2J"}\n' in result.stdout
    assert "  00000000  ff 00 " in result.stdout
    assert "\x1b" not in result.stdout
    assert json.loads(headrace("rejected", "show", "17", "-o", "json").stdout)["id"] == 17


def test_of_a_rejected_claim_check_it_is_said_where_the_payload_lies(
    services: Services, headrace: Headrace
) -> None:
    claim = {"ce_dataref": b"s3://bucket/claims/x"}
    services.answers["GetRejected"] = lambda _: rejected_event(payload=b"", headers=claim)
    result = headrace("rejected", "show", "17")
    assert result.exit_code == 0, result.output
    assert "  ce_dataref: s3://bucket/claims/x\n" in result.stdout
    assert "payload: in the object store, where ce_dataref says\n" in result.stdout


def test_rejected_events_are_replayed_by_their_ids(
    services: Services, headrace: Headrace, tmp_path: Path
) -> None:
    services.answers["ReplayRejected"] = lambda request: ingestion.ReplayRejectedResponse(
        replayed_count=len(request.ids)
    )
    result = headrace("rejected", "replay", "17", "18")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("2 replayed")
    assert not services.requests[0].HasField("correction")
    file = tmp_path / "payload.json"
    file.write_bytes(b'{"x": 1}')
    corrected = ("--payload", str(file), "--dataset", "small", "--attribute", "type=t=1", "-o", "json")
    assert json.loads(headrace("rejected", "replay", "17", *corrected).stdout)["replayed"] == 1
    assert services.requests[1].correction == ingestion.Correction(
        payload=b'{"x": 1}', attributes={"subject": "small", "type": "t=1"}
    )


def test_all_that_wait_are_replayed_and_what_cannot_be_is_told(
    services: Services, headrace: Headrace
) -> None:
    services.answers["ReplayRejected"] = lambda request: ingestion.ReplayRejectedResponse(
        replayed_count=500,
        oversize_ids=[] if request.page_token else [3],
        next_page_token="" if request.page_token else "x",
    )
    result = headrace("rejected", "replay", "--dataset", "small", "--reason", "schema_violation")
    assert result.exit_code == 1
    assert result.stdout.startswith("1000 replayed")
    assert "have their producer send them again: 3" in result.stderr
    assert services.requests[0].filter == ingestion.RejectedFilter(dataset="small", reason="SCHEMA_VIOLATION")


def test_rejected_events_are_discarded_with_a_reason(services: Services, headrace: Headrace) -> None:
    services.answers["DiscardRejected"] = lambda request: ingestion.DiscardRejectedResponse(
        discarded_count=len(request.ids) or 7
    )
    assert headrace("rejected", "discard", "17", "--because", "a test").stdout == "1 discarded\n"
    assert services.requests[0] == ingestion.DiscardRejectedRequest(ids=[17], reason="a test")
    result = headrace("rejected", "discard", "--dataset", "small", "--because", "a test", "-o", "json")
    assert json.loads(result.stdout) == {"discarded": 7}
    assert services.requests[1].filter == ingestion.RejectedFilter(dataset="small")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--state", "gone"],
        ["replay", "17", "--reason", "x"],
        ["replay", "--payload", __file__],
        ["replay", "17", "--payload", "no-such-file"],
        ["replay", "17", "--attribute", "type"],
        ["discard", "17"],
        ["discard", "17", "--because", "x", "--dataset", "small"],
    ],
)
def test_wrong_usage_of_rejected_exits_with_2(
    services: Services, headrace: Headrace, arguments: list[str]
) -> None:
    assert headrace("rejected", *arguments).exit_code == 2
    assert not services.requests


def test_status_tells_how_often_and_why_a_part_was_restarted(
    headrace: Headrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = PartStatus(
        name="triton", state=PartState.READY, restarts=2, message="last restart: ended with exit code -9"
    )
    monkeypatch.setattr(commands, "status", lambda _data: [part])
    heading, row = headrace("status").stdout.splitlines()
    assert heading.split()[:3] == ["part", "state", "restarts"]
    assert row.split()[:3] == ["triton", "ready", "2"]
    assert "exit code -9" in row
    [document] = json.loads(headrace("status", "-o", "json").stdout)
    assert (document["restarts"], document["message"]) == (2, part.message)


def test_a_rollout_is_watched_to_its_end(services: Services, headrace: Headrace) -> None:
    states = (inference.ROLLOUT_STATE_PROGRESSING, inference.ROLLOUT_STATE_SUCCEEDED)
    services.answers["WatchDeployment"] = lambda _: [
        inference.Deployment(rollout=inference.Rollout(to_version=2, state=state, weight=50))
        for state in states
    ]
    result = headrace("rollout", "status", "d", "--watch")
    assert result.exit_code == 0, result.output
    assert [line.split()[3] for line in result.stdout.splitlines()] == ["PROGRESSING", "SUCCEEDED"]


def test_what_a_rollout_is_judged_by_is_shown(services: Services, headrace: Headrace) -> None:
    finding = inference.RolloutFinding(
        criterion=inference.ROLLOUT_CRITERION_LATENCY_P99,
        standing=inference.ROLLOUT_STANDING_SUSPECT,
        new_value=0.012,
        old_value=0.006,
        effect=2.0,
        low=1.1,
        limit=1.5,
        new_samples=200,
        old_samples=900,
    )
    services.answers["GetDeployment"] = lambda _: inference.Deployment(
        rollout_spec=scheduling.RolloutSpec(steps=[10, 100]),
        rollout=inference.Rollout(
            from_version=1,
            to_version=2,
            state=inference.ROLLOUT_STATE_PROGRESSING,
            weight=10,
            paused=True,
            judgement=inference.RolloutJudgement(verdict=inference.ROLLOUT_VERDICT_HOLD, findings=[finding]),
        ),
    )
    result = headrace("rollout", "status", "d")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("v1 -> v2  PROGRESSING, paused  10%")
    assert lines[1].split() == ["████░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░", "steps", "[10]", "100"]
    assert lines[2] == "verdict HOLD"
    row = lines[-1].split()
    assert row[:2] == ["LATENCY_P99", "SUSPECT"]
    assert "12 ms" in lines[-1]
    assert "1.10x..?" in lines[-1]
    assert "200/900" in lines[-1]


def test_a_shadowing_rollout_is_shown_before_its_steps(services: Services, headrace: Headrace) -> None:
    spec = scheduling.RolloutSpec(steps=[10, 100], shadow=scheduling.RolloutSpec.Shadow(share=50))
    services.answers["GetDeployment"] = lambda _: inference.Deployment(
        rollout_spec=spec,
        rollout=inference.Rollout(from_version=1, to_version=2, state=inference.ROLLOUT_STATE_SHADOWING),
    )
    lines = headrace("rollout", "status", "d").stdout.splitlines()
    assert lines[0].startswith("v1 -> v2  SHADOWING  0%")
    assert lines[1].endswith("steps [shadow] 10 100")


def test_a_shadows_predictions_are_marked(services: Services, headrace: Headrace) -> None:
    services.answers["ListPredictions"] = lambda _: inference.ListPredictionsResponse(
        predictions=[
            inference.Prediction(id="p", version=2, shadow=True),
            inference.Prediction(id="p", version=1),
        ]
    )
    result = headrace("get", "predictions", "d")
    assert result.exit_code == 0, result.output
    assert [line.split()[1:3] for line in result.stdout.splitlines()[-2:]] == [["2", "(shadow)"], ["1", "-"]]


@pytest.mark.parametrize(
    ("command", "method"),
    [
        ("pause", "PauseRollout"),
        ("resume", "ResumeRollout"),
        ("promote", "PromoteRollout"),
        ("abort", "AbortRollout"),
    ],
)
def test_a_rollout_is_steered(services: Services, headrace: Headrace, command: str, method: str) -> None:
    services.answers[method] = lambda request: inference.Deployment(
        name=request.deployment,
        rollout=inference.Rollout(state=inference.ROLLOUT_STATE_PROGRESSING, message="as asked"),
    )
    result = headrace("rollout", command, "d")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == "rollout of d is PROGRESSING: as asked"


def test_help_lists_the_commands_and_exit_codes(headrace: Headrace) -> None:
    result = headrace("--help")
    assert result.exit_code == 0
    for word in ("up", "apply", "trace", "Exit codes"):
        assert word in result.stdout


def test_the_version_is_told(headrace: Headrace) -> None:
    assert headrace("--version").stdout.strip() == version("headrace")


def test_deployments_say_on_how_many_servers_they_are(services: Services, headrace: Headrace) -> None:
    scaling = scheduling.Scaling(min_replicas=0)
    services.answers["ListDeployments"] = lambda _: inference.ListDeploymentsResponse(
        deployments=[
            inference.Deployment(name="always", replicas=64),
            inference.Deployment(name="cold", scaling=scaling, ready=True),
            inference.Deployment(name="some", scaling=scaling, replicas=2),
        ]
    )
    heading, *rows = headrace("get", "deployments").stdout.splitlines()
    ends_at = heading.index("servers") + len("servers")
    assert [row[:ends_at].split()[-1] for row in rows] == ["all", "0", "2"]


def test_kinds_complete_in_a_shell() -> None:
    assert _kinds("mod") == ["models", "model-versions"]


def test_top_shows_what_comes_into_the_datasets(headrace: Headrace, services: Services) -> None:
    rows = iter(range(100, 200, 10))
    services.answers["ListDatasets"] = lambda _request: ingestion.ListDatasetsResponse(
        datasets=[ingestion.Dataset(name="small", row_count=next(rows), rejected_count=3, latest_version=2)]
    )
    shown = headrace("dataset", "top", "--once", "--interval", "0.2")
    assert shown.exit_code == 0
    heading, _, _, row = shown.output.splitlines()[:4]
    assert "HEADRACE_INGESTION_HTTP_TARGET" in heading
    assert row.split()[:2] == ["small", "110"]
    answer = json.loads(headrace("dataset", "top", "--once", "--interval", "0.2", "-o", "json").output)
    assert answer["datasets"][0]["rows"] == 130
    assert answer["datasets"][0]["rows_per_second"] > 0
    assert answer["lag_events"] is None


def test_top_asks_the_instances_for_what_only_they_know(
    headrace: Headrace, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.answers["ListDatasets"] = lambda _request: ingestion.ListDatasetsResponse()
    server, thread = start_http_server(0, addr="127.0.0.1")
    # The second one is away.
    addresses = f"127.0.0.1:{server.server_port},127.0.0.1:1"
    monkeypatch.setenv("HEADRACE_INGESTION_HTTP_TARGET", addresses)
    shown = headrace("dataset", "top", "--once", "--interval", "0.2", "-o", "json")
    server.shutdown()
    server.server_close()
    thread.join()
    assert json.loads(shown.output)["memory_mebibytes"] > 1
