"""Drift in a pipeline's file."""

from __future__ import annotations

from datetime import timedelta

import pytest

from headrace.api.scheduling.v1 import drift_pb2 as drift
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.client import pipeline_file
from headrace.errors import FieldViolation, InvalidArgument
from headrace.rpc.convert import to_duration

FILE = """\
apiVersion: headrace.dev/v1
kind: Pipeline
metadata: {name: small}
spec:
  dataset: {key: id, features: {x: float64}, label: {name: y, type: float64}}
  training: {recipe: mlp}
  deployment: {name: small, drift: WATCHED}
  retrain: {on: [], drift: FOLLOWED}
"""


def read(watched: str = "{}", followed: str = "{}") -> pipeline_file.PipelineFile:
    return pipeline_file.parse(FILE.replace("WATCHED", watched).replace("FOLLOWED", followed), "p.yaml")


def spec(watched: str = "{}", followed: str = "{}") -> scheduling.PipelineSpec:
    return read(watched, followed).request.spec


def test_what_is_said_arrives() -> None:
    found = spec(
        "{requests: 200, every: 5m, windows: 3, min_psi: 0.3, confidence: 0.95}",
        "{cooldown: 2h, max_per_day: 5}",
    )
    assert found.deployment.drift == drift.DriftSpec(
        requests=200, every=to_duration(timedelta(minutes=5)), windows=3, min_psi=0.3, confidence=0.95
    )
    assert found.retrain_on_drift == drift.DriftRetraining(
        cooldown=to_duration(timedelta(hours=2)), max_per_day=5
    )
    assert not found.retrain_on_dataset_version


def test_what_is_not_said_is_the_services_to_choose() -> None:
    assert spec().retrain_on_drift == drift.DriftRetraining()
    assert spec().HasField("retrain_on_drift")
    assert not spec(followed="{cooldown: 0s}").retrain_on_drift.cooldown.seconds
    assert spec(followed="{cooldown: 0s}").retrain_on_drift.HasField("cooldown")
    without = FILE.replace(", drift: WATCHED", "").replace(", drift: FOLLOWED", "")
    silent = pipeline_file.parse(without).request.spec
    assert not silent.deployment.HasField("drift")
    assert not silent.HasField("retrain_on_drift")


@pytest.mark.parametrize(
    ("watched", "followed", "message"),
    [
        ("{min_psy: 0.3}", "{}", "unknown key 'min_psy'; did you mean 'min_psi'?"),
        ("{every: soon}", "{}", "spec.deployment.drift.every: must be a length of time"),
        ("{}", "{max_per_day: few}", "spec.retrain.drift.max_per_day: must be a whole number"),
    ],
)
def test_mistakes_are_named(watched: str, followed: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read(watched, followed)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("field", "place"),
    [("spec.deployment.drift.min_psi", "7:37"), ("spec.retrain_on_drift.cooldown", "8:29")],
)
def test_what_a_service_finds_wrong_is_found_in_the_file(field: str, place: str) -> None:
    refused = InvalidArgument("INVALID", "wrong", fields=[FieldViolation(field, "no")])
    file = read("{min_psi: 99}", "{cooldown: 99d}")
    assert file.explained(refused).message.startswith(f"p.yaml:{place}: ")
