from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from headrace.errors import InvalidArgument
from headrace.scheduling.domain.pipeline import (
    Gate,
    PipelineRules,
    Rollout,
    Split,
    check_pipeline,
    job_resources,
)
from headrace.scheduling.domain.preparation import Preparation
from headrace.scheduling.domain.resources import GIBIBYTE, Resources

RULES = PipelineRules(
    split=Split(0.7, 0.15, 0.15),
    cpu=1,
    memory=GIBIBYTE,
    gpu=0,
    priority=0,
    deadline=None,
    gates=[Gate("accuracy", "test", 0.9, None)],
    rollout=Rollout((10, 50, 100), timedelta(seconds=5)),
)


def test_a_good_pipeline_passes() -> None:
    check_pipeline(RULES)
    check_pipeline(replace(RULES, rollout=None, gates=[], split=Split(1.0, 0.0, 0.0)))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"split": None}, "spec.training.split"),
        ({"split": Split(0.7, 0.2, 0.2)}, "spec.training.split"),
        ({"split": Split(1.2, -0.4, 0.2)}, "spec.training.split.train"),
        ({"split": Split(float("nan"), 0.5, 0.5)}, "spec.training.split"),
        ({"cpu": 0.0001}, "spec.resources.cpu"),
        ({"cpu": float("inf")}, "spec.resources.cpu"),
        ({"cpu": 1e17}, "spec.resources.cpu"),
        ({"priority": -(2**31)}, "spec.priority"),
        ({"priority": 2**31 - 1}, "spec.priority"),
        ({"deadline": timedelta(seconds=315_576_000_000)}, "spec.deadline"),
        ({"memory": -1}, "spec.resources.memory_bytes"),
        ({"gpu": -1}, "spec.resources.gpu"),
        ({"deadline": timedelta(seconds=-1)}, "spec.deadline"),
        ({"gates": [RULES.gates[0], Gate("recall", "test", None, None)]}, "spec.gates[1]"),
        ({"gates": [Gate("recall", "test", 0.9, 0.8)]}, "spec.gates[0].min"),
        ({"gates": [Gate("recall", "test", float("nan"), None)]}, "spec.gates[0].min"),
        ({"split": Split(1.0, 0.0, 0.0)}, "spec.gates[0].split"),
        ({"rollout": Rollout((), timedelta(0))}, "spec.deployment.rollout.steps"),
        ({"rollout": Rollout((50, 10, 100), timedelta(0))}, "spec.deployment.rollout.steps[1]"),
        ({"rollout": Rollout((10, 50), timedelta(0))}, "spec.deployment.rollout.steps[1]"),
        ({"rollout": Rollout((0, 100), timedelta(0))}, "spec.deployment.rollout.steps[0]"),
        ({"rollout": Rollout((100,), timedelta(seconds=-1))}, "spec.deployment.rollout.hold"),
    ],
)
def test_what_makes_no_sense_is_named(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_pipeline(replace(RULES, **change))  # type: ignore[arg-type]
    assert caught.value.reason == "INVALID_PIPELINE"
    assert field in [violation.field for violation in caught.value.fields]
    assert caught.value.fields[0].field in caught.value.message


def test_every_mistake_is_listed_at_once() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_pipeline(replace(RULES, gpu=-1, memory=-1))
    assert len(caught.value.fields) == 2


def test_only_an_audience_may_be_the_first_to_get_a_version() -> None:
    check_pipeline(replace(RULES, rollout=Rollout((0, 10, 100), timedelta(0), audience=True)))


def test_what_a_pipeline_leaves_out_is_one_core_and_a_gibibyte() -> None:
    assert job_resources(0, 0, 0) == Resources(0, 1000, GIBIBYTE)
    assert job_resources(0.1, 5, 2) == Resources(2, 100, 5)


TYPES = {
    "area": "float32",
    "depth": "float64",
    "grade": "int8",
    "image": "tensor",
    "signal": "tensor",
    "site": "string",
    "taken": "timestamp",
}
SHAPES = {"image": (200, 300, 3), "signal": (1000,)}


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"feature": "are"}, "feature"),
        ({"feature": "site"}, "encode"),
        ({"feature": "site", "encoded": True, "missing": "constant", "constant": 1.0}, "missing"),
        ({"feature": "site", "encoded": True, "missing": "mean"}, "missing"),
        ({"feature": "site", "encoded": True, "normalise": "standard"}, "normalise"),
        ({"feature": "grade", "encoded": True, "missing": "constant", "text_constant": "a"}, "missing"),
        ({"feature": "taken"}, "feature"),
        ({"feature": "area", "clip_min": 2.0, "clip_max": 1.0}, "clip_min"),
        ({"feature": "area", "clip_max": float("inf")}, "clip_max"),
        ({"feature": "area", "missing": "constant", "constant": float("nan")}, "constant"),
        ({"feature": "area", "missing": "constant", "constant": 1e39}, "constant"),
        ({"feature": "area", "clip_min": -3.41e38}, "clip_min"),
        ({"feature": "area", "clip_max": 1e39}, "clip_max"),
        ({"feature": "area", "indicator": True}, "indicator"),
        ({"feature": "area", "encoded": True}, "encode"),
        ({"feature": "grade", "encoded": True, "missing": "mean"}, "missing"),
        ({"feature": "grade", "encoded": True, "log": True}, "log"),
        ({"feature": "grade", "encoded": True, "normalise": "standard"}, "normalise"),
        ({"feature": "grade", "encoded": True, "clip_min": 0.0}, "clip_min"),
        ({"feature": "area", "resize": (4, 4)}, "resize"),
        ({"feature": "signal", "resize": (4, 4)}, "resize"),
        ({"feature": "image", "resize": (1024, 1025)}, "resize"),
        ({"feature": "area", "per_channel": True, "normalise": "standard"}, "per_channel"),
        ({"feature": "image", "per_channel": True}, "per_channel"),
        ({"feature": "image", "per_channel": True, "normalise": "robust"}, "per_channel"),
    ],
)
def test_a_preparation_that_makes_no_sense_is_named(wish: dict[str, object], field: str) -> None:
    wishes = [Preparation(**wish)]  # type: ignore[arg-type]
    types = {name: type_ for name, type_ in TYPES.items() if name != "site" or wish["feature"] == name}
    rules = replace(RULES, feature_types=types, feature_shapes=SHAPES, preparations=wishes)
    with pytest.raises(InvalidArgument) as caught:
        check_pipeline(rules)
    assert [violation.field for violation in caught.value.fields] == [
        f"spec.training.preparations[0].{field}"
    ]


def test_a_text_must_be_encoded() -> None:
    with pytest.raises(InvalidArgument, match=r"encode: one_hot or ordinal, or make it an attr") as caught:
        check_pipeline(replace(RULES, feature_types={"area": "float32", "site": "string"}))
    assert [violation.field for violation in caught.value.fields] == ["spec.dataset.schema.features[1]"]


def test_a_feature_is_prepared_once() -> None:
    twice = [Preparation("area", log=True), Preparation("area")]
    with pytest.raises(InvalidArgument, match=r"preparations\[1\].feature: .area. is prepared twice"):
        check_pipeline(replace(RULES, feature_types=TYPES, preparations=twice))


def test_sound_preparations_pass() -> None:
    sound = [
        Preparation(
            "area", missing="median", indicator=True, clip_min=0.0, clip_max=9.0, log=True, normalise="robust"
        ),
        Preparation("image", resize=(64, 64), per_channel=True, normalise="min_max"),
        Preparation("grade", encoded=True, missing="constant", indicator=True),
        Preparation("site", encoded=True, missing="constant", text_constant=""),
        Preparation("depth", clip_min=-3.4028234663852886e38, clip_max=3.4028234663852886e38),
    ]
    check_pipeline(replace(RULES, feature_types=TYPES, feature_shapes=SHAPES, preparations=sound))


def test_a_label_is_normalised_by_mean_and_deviation_or_not_at_all() -> None:
    check_pipeline(replace(RULES, label_normalisation="standard"))
    with pytest.raises(InvalidArgument, match="normalise_label: must be none or standard"):
        check_pipeline(replace(RULES, label_normalisation="robust"))
