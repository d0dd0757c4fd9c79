"""`headrace drift`, for people and for programs."""

from __future__ import annotations

import json

from tests.support.cli import Headrace, Services

from headrace.api.inference.v1 import drift_pb2 as api
from headrace.api.scheduling.v1 import drift_pb2 as scheduling
from headrace.cli.output import ExitCode
from headrace.errors import NotFound


def a_finding(column: str, psi: float, *, drifts: bool = False) -> api.DriftFinding:
    test = api.DRIFT_TEST_KOLMOGOROV_SMIRNOV
    p_value = 1e-9 if drifts else 0.7
    return api.DriftFinding(
        column=column, test=test, statistic=psi / 2, p_value=p_value, psi=psi, drifts=drifts
    )


def drifting(*findings: api.DriftFinding) -> api.Drift:
    episode = api.DriftEpisode(model_version=3, columns=["radius"])
    episode.begin_time.FromJsonString("2026-01-02T03:04:05Z")
    return api.Drift(
        deployment="live",
        model_version=3,
        dataset="scans",
        dataset_version=7,
        state=api.DRIFT_STATE_DRIFTING,
        spec=scheduling.DriftSpec(min_psi=0.2, confidence=0.99),
        window=api.DriftWindow(requests=500, rows=512, findings=findings),
        episodes=[episode],
    )


def test_what_drifts_stands_first_with_its_limits(services: Services, headrace: Headrace) -> None:
    found = drifting(a_finding("texture", 0.3), a_finding("radius", 0.25, drifts=True))
    services.answers["GetDrift"] = lambda _: found
    result = headrace("drift", "live")
    assert result.exit_code == 0, result.output
    title, window, _, first, second, episode = result.stdout.splitlines()
    assert title == "live version 3 trained on scans/7  DRIFTING"
    assert window.startswith("window of 500 requests, 512 rows")
    assert first.split() == ["radius", "KS", "0.125", "1e-09", "0.01", "0.250", "0.2", "drifts"]
    assert second.split()[-1] == "-"
    assert episode == "version 3 drifted in radius from 2026-01-02T03:04:05.000Z and goes on"
    assert services.requests[0].deployment == "live"


def test_of_many_columns_the_worst_are_shown(services: Services, headrace: Headrace) -> None:
    found = drifting(*(a_finding(f"x{place}", place / 100) for place in range(30)))
    services.answers["GetDrift"] = lambda _: found
    lines = headrace("drift", "live").stdout.splitlines()
    assert lines[3].split()[0] == "x29"
    assert "10 more, none of them worse; --all shows them" in lines
    assert "x0" in headrace("drift", "live", "--all").stdout.split()


def test_why_nothing_is_judged_is_said(services: Services, headrace: Headrace) -> None:
    waiting = api.Drift(deployment="live", model_version=1, state=api.DRIFT_STATE_WAITING, message="soon")
    services.answers["GetDrift"] = lambda _: waiting
    assert headrace("drift", "live").stdout.splitlines() == ["live version 1  WAITING", "soon"]


def test_programs_get_all_of_it(services: Services, headrace: Headrace) -> None:
    services.answers["GetDrift"] = lambda _: drifting(a_finding("radius", 0.25, drifts=True))
    document = json.loads(headrace("drift", "live", "-o", "json").stdout)
    assert document["window"]["findings"][0]["drifts"] is True


def test_a_deployment_that_there_is_not(services: Services, headrace: Headrace) -> None:
    def refuse(_: object) -> api.Drift:
        raise NotFound("DEPLOYMENT_NOT_FOUND", "there is no deployment 'x'")

    services.answers["GetDrift"] = refuse
    assert headrace("drift", "x").exit_code == ExitCode.NOT_FOUND
