"""`headrace tune`: what it asks the service, what it says, and what it draws."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from tests.support.cli import Headrace, Services

from headrace.api.inference.v1 import tuning_pb2 as api
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.cli.output import ExitCode
from headrace.errors import FailedPrecondition
from headrace.rpc.convert import to_duration


def setting(batch: int, delay: float = 0.0, instances: int = 1) -> api.TunedSetting:
    batching = scheduling.Batching(
        max_batch_size=batch, max_queue_delay=to_duration(timedelta(milliseconds=delay))
    )
    return api.TunedSetting(batching=batching, instances=instances)


def measurement(
    of: api.TunedSetting, in_flight: int, throughput: float, latency: float, *, keeps: bool = True
) -> api.TuningMeasurement:
    return api.TuningMeasurement(
        setting=of,
        in_flight=in_flight,
        throughput=throughput,
        p50=to_duration(timedelta(milliseconds=latency / 2)),
        latency=to_duration(timedelta(milliseconds=latency)),
        answered=3000,
        stable=keeps,
        keeps_target=keeps,
    )


NOW, BEST = setting(64), setting(16, 2.5, 2)
MEASURED = [
    measurement(NOW, 4, 1000, 8),
    measurement(NOW, 8, 1200, 31, keeps=False),
    measurement(BEST, 16, 2345, 19),
]
PROPOSAL = api.TuningProposal(
    setting=BEST,
    measurement=MEASURED[2],
    current=MEASURED[0],
    keeps_target=True,
    changes=True,
    complete=True,
    message="the highest throughput at a p99 of 20 ms",
)


@pytest.fixture
def tuned(services: Services) -> api.TuningProposal:
    """What is answered last, to be changed."""
    proposal = api.TuningProposal()
    proposal.CopyFrom(PROPOSAL)

    def answers(_: object) -> list[api.TuneDeploymentResponse]:
        start = api.TuningStart(version=3, current=NOW, requests="one row of zeros", rows=1)
        return [
            api.TuneDeploymentResponse(start=start),
            *(api.TuneDeploymentResponse(measurement=one) for one in MEASURED),
            api.TuneDeploymentResponse(proposal=proposal),
        ]

    services.answers["TuneDeployment"] = answers
    return proposal


def test_the_proposal_is_shown_beside_what_else_was_measured(
    headrace: Headrace, services: Services, tuned: api.TuningProposal
) -> None:
    result = headrace("tune", "deployment", "live", "--target", "p99=20ms", "--max-time", "1m30s")
    assert result.exit_code == ExitCode.OK, result.stderr
    (request,) = services.requests
    assert (request.deployment, request.share, request.rate) == ("live", 0.99, 0)
    assert request.target.ToMilliseconds() == 20
    assert request.max_time.ToSeconds() == 90
    lines = result.stdout.splitlines()
    # The best one first, and of the current one what it keeps the target with.
    assert [word in lines[2] for word in ("16", "2.5 ms", "2,345", "19.00 ms", "proposed")] == [True] * 5
    assert [word in lines[3] for word in ("64", "0 ms", "1,000", "8.00 ms", "current")] == [True] * 5
    assert "batching: {max_batch_size: 16, max_queue_delay: 2.5ms}" in result.stdout
    assert "instances: 2" in result.stdout


def test_what_was_applied_and_what_was_cut_short_is_said(
    headrace: Headrace, services: Services, tuned: api.TuningProposal
) -> None:
    tuned.applied, tuned.complete = True, False
    result = headrace("tune", "deployment", "live", "--target", "p50=20ms", "--rate", "500", "--apply")
    assert "live is served so from now on" in result.stdout
    assert "--apply" not in result.stdout
    assert "time was over" in result.stdout
    (request,) = services.requests
    assert (request.apply, request.rate, request.share) == (True, 500, 0.5)


def test_a_target_that_nothing_keeps_has_its_exit_code(headrace: Headrace, tuned: api.TuningProposal) -> None:
    tuned.keeps_target = False
    result = headrace("tune", "deployment", "live", "--target", "p99=20ms", "-o", "json")
    assert result.exit_code == ExitCode.FAILED
    document = json.loads(result.stdout)
    assert document["proposal"]["setting"]["instances"] == 2
    assert [one["in_flight"] for one in document["measurements"]] == [4, 8, 16]


def test_everything_measured_is_drawn(headrace: Headrace, tuned: api.TuningProposal, tmp_path: Path) -> None:
    file = tmp_path / "tune.svg"
    assert not headrace("tune", "deployment", "live", "--target", "p99=20ms", "--plot", str(file)).exit_code
    drawing = ET.fromstring(file.read_text())
    titles = [title.text for title in drawing.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == len(MEASURED)
    assert "batch 16, 2.5 ms, 2 inst., 16 in flight: 2,345/s, 19.00 ms" in titles


@pytest.mark.parametrize(
    "wrong",
    [("--target", "20ms"), ("--target", "p100=20ms"), ("--target", "p99=soon"), ("--plot", "tune.png")],
)
def test_wrong_words_are_wrong_usage(
    headrace: Headrace, services: Services, tuned: api.TuningProposal, wrong: tuple[str, str]
) -> None:
    words = ("--target", "p99=20ms", *wrong)
    assert headrace("tune", "deployment", "live", *words).exit_code == ExitCode.USAGE
    assert services.requests == []


def test_a_busy_machine_has_its_exit_code_and_what_to_do(headrace: Headrace, services: Services) -> None:
    def busy(_: object) -> list[api.TuneDeploymentResponse]:
        raise FailedPrecondition("LIVE_TRAFFIC", "Triton's machine answers 100 requests/s")

    services.answers["TuneDeployment"] = busy
    result = headrace("tune", "deployment", "live", "--target", "p99=20ms")
    assert result.exit_code == ExitCode.CONFLICT
    assert "LIVE_TRAFFIC" in result.stderr
