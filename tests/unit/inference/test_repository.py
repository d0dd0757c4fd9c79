"""What Triton reads, and what is said where a version's file is not what was registered."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.domain.serving import DEFAULTS, Serving
from headrace.inference.triton.repository import ModelRepository, model_configuration
from headrace.inference.use_cases.ports import LoadError
from headrace.objects import ObjectStore

DATA = b"a model"


@pytest.fixture
def store(store_uri: str) -> ObjectStore:
    return ObjectStore.from_uri(store_uri)


@pytest.fixture
def repository(store: ObjectStore, tmp_path: Path) -> ModelRepository:
    return ModelRepository(tmp_path / "models", store)


def a_version(uri: str) -> ServedVersion:
    return ServedVersion("m", 1, uri, hashlib.sha256(DATA).hexdigest(), (), (), (), b"", "")


async def test_the_registered_file_is_fetched(
    repository: ModelRepository, store: ObjectStore, tmp_path: Path
) -> None:
    await store.put("m/1/model.onnx", DATA)
    await repository.put("live", [a_version(store.uri("m/1/model.onnx"))], DEFAULTS)
    assert (tmp_path / "models" / "live" / "1" / "model.onnx").read_bytes() == DATA


async def test_a_missing_foreign_or_different_file_does_not_load(
    repository: ModelRepository, store: ObjectStore
) -> None:
    await store.put("m/2/model.onnx", b"another model")
    for uri, why in (
        (store.uri("m/1/model.onnx"), "there is no object"),
        ("s3://elsewhere/m/1/model.onnx", "is not in the object store"),
        (store.uri("m/2/model.onnx"), "registered was"),
    ):
        with pytest.raises(LoadError, match=why):
            await repository.put("live", [a_version(uri)], DEFAULTS)


@pytest.mark.parametrize(
    ("values", "rows"), [(30, 64), (224 * 224 * 3, 64), (512 * 512 * 3, 21), (1 << 20, 16), (1 << 26, 1)]
)
def test_a_batch_of_large_images_has_fewer_rows(values: int, rows: int) -> None:
    version = replace(a_version(""), inputs=(Tensor("features", "FP32", (-1, values)),))
    assert (
        f"max_batch_size: {rows}"
        in model_configuration("live", [version], Serving(max_batch_size=64)).splitlines()
    )


def test_triton_is_told_how_a_deployment_is_served() -> None:
    version = replace(a_version(""), inputs=(Tensor("features", "FP32", (-1, 1 << 20)),))
    serving = Serving(64, timedelta(milliseconds=1.5), preferred=(8, 32), instances=3)
    lines = model_configuration("live", [version], serving).splitlines()
    # Rows so large that a batch holds sixteen.
    assert "max_batch_size: 16" in lines
    assert "dynamic_batching { preferred_batch_size: [8]" in lines
    assert "  max_queue_delay_microseconds: 1500 }" in lines
    assert "instance_group { kind: KIND_CPU count: 3 }" in lines


def test_what_is_measured_has_no_topic_for_its_predictions() -> None:
    without = 'parameters { key: "prediction_topic" value { string_value: "" } }'
    assert without in model_configuration("tuning.live", [a_version("")], DEFAULTS, prediction_topic="")
    assert without not in model_configuration("live", [a_version("")], DEFAULTS)


def test_triton_names_places_where_all_versions_mean_the_same_by_them() -> None:
    first = replace(a_version(""), outputs=(Tensor("scores", "FP32", (-1, 2)),), classes=('"cat"', '"dog"'))
    second = replace(first, version=2)
    named = 'output { name: "scores" data_type: TYPE_FP32 dims: [2] label_filename: "labels.txt" }'
    added = 'output { name: "class" data_type: TYPE_STRING dims: [1] }'
    assert {named, added} <= set(model_configuration("live", [first, second], DEFAULTS).splitlines())
    for classes in (('"dog"', '"cat"'), ('"one\\nline"', '"dog"')):
        other = replace(second, classes=classes)
        assert "label_filename" not in model_configuration("live", [first, other], DEFAULTS)
    unnameable = replace(first, classes=('"one\\nline"', '"dog"'))
    assert "label_filename" not in model_configuration("live", [unnameable], DEFAULTS)


def test_scores_have_any_size_while_versions_know_more_and_fewer_classes() -> None:
    scores, label = Tensor("scores", "FP32", (-1, 2)), Tensor("label", "INT64", (-1,))
    old = replace(a_version(""), outputs=(label, scores), classes=('"cat"', '"dog"'))
    more = replace(scores, shape=(-1, 3))
    new = replace(old, version=2, outputs=(more, label), classes=('"ant"', '"cat"', '"dog"'))
    both = model_configuration("live", [old, new], DEFAULTS).splitlines()
    assert 'output { name: "scores" data_type: TYPE_FP32 dims: [-1] }' in both
    assert 'output { name: "label" data_type: TYPE_INT64 dims: [1] }' in both
    alone = 'output { name: "scores" data_type: TYPE_FP32 dims: [3] label_filename: "labels.txt" }'
    assert alone in model_configuration("live", [new], DEFAULTS).splitlines()
