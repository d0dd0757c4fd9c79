"""`headrace requests`: what it asks the service, and what it says."""

from __future__ import annotations

import json

from tests.support.cli import Headrace, Services

from headrace.api.inference.v1 import requests_pb2 as api
from headrace.cli.output import ExitCode
from headrace.errors import NotFound

FAILED = api.InferenceRequest(
    id="r1",
    source="shop",
    deployment="live",
    state=api.REQUEST_STATE_FAILED,
    priority="normal",
    attempts=4,
    code="INTERNAL",
    reason="INTERNAL",
    message="the model failed",
)


def test_list_asks_for_a_state_and_shows_a_row_each(headrace: Headrace, services: Services) -> None:
    services.answers["ListRequests"] = lambda _: api.ListRequestsResponse(requests=[FAILED])
    result = headrace("requests", "list", "--state", "failed", "--deployment", "live")
    assert result.exit_code == ExitCode.OK
    assert [word in result.stdout for word in ("r1", "FAILED", "INTERNAL")] == [True] * 3
    (request,) = services.requests
    assert (request.state, request.deployment) == (api.REQUEST_STATE_FAILED, "live")
    assert headrace("requests", "list", "--state", "lost").exit_code == ExitCode.USAGE


def test_get_shows_why(headrace: Headrace, services: Services) -> None:
    services.answers["GetRequest"] = lambda _: FAILED
    assert "the model failed" in headrace("requests", "get", "r1").stdout
    shown = json.loads(headrace("requests", "status", "r1", "--source", "shop", "-o", "json").stdout)
    assert shown[0]["state"] == "FAILED"
    assert services.requests[-1] == api.GetRequestRequest(id="r1", source="shop")


def test_an_unknown_request_has_its_exit_code(headrace: Headrace, services: Services) -> None:
    def missing(_: api.GetRequestRequest) -> api.InferenceRequest:
        raise NotFound("REQUEST_NOT_FOUND", "there is no request 'r2'")

    services.answers["GetRequest"] = missing
    result = headrace("requests", "status", "r2")
    assert result.exit_code == ExitCode.NOT_FOUND
    assert "REQUEST_NOT_FOUND" in result.stderr


def test_cancel_says_so(headrace: Headrace, services: Services) -> None:
    services.answers["CancelRequest"] = lambda _: api.InferenceRequest(
        id="r1", state=api.REQUEST_STATE_CANCELLED
    )
    assert "r1 is cancelled" in headrace("requests", "cancel", "r1").stdout


def test_replay_says_whether_it_runs_again(headrace: Headrace, services: Services) -> None:
    services.answers["ReplayRequest"] = lambda _: api.InferenceRequest(
        id="r1", state=api.REQUEST_STATE_RECEIVED
    )
    assert "is run again" in headrace("requests", "replay", "r1", "--timeout", "2.5").stdout
    assert services.requests[-1].timeout.ToMilliseconds() == 2500
    services.answers["ReplayRequest"] = lambda _: api.InferenceRequest(
        id="r1", state=api.REQUEST_STATE_ANSWERED
    )
    assert "published again" in headrace("requests", "replay", "r1").stdout
    assert not services.requests[-1].HasField("timeout")
