"""What a run is told of what its pipeline said."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.support.training import a_task, features

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.tensors import TensorType
from headrace.training.domain.runs import Run
from headrace.training.executor import specification
from headrace.training.run.specification import Column, Preparation, RunSpec, Span

RUN = Run("job-1", "job", 1, "p", "node", "", datetime(2026, 1, 1, tzinfo=UTC))


def told(training: scheduling.TrainingSpec, in_memory_bytes: int = 7) -> RunSpec:
    schema = ingestion.Schema(
        key="k",
        features=[
            ingestion.Field(name="area", type=ingestion.FIELD_TYPE_FLOAT32, nullable=True),
            ingestion.Field(name="grade", type=ingestion.FIELD_TYPE_INT8),
        ],
        label=ingestion.Field(name="y", type=ingestion.FIELD_TYPE_INT8, allowed_values=["0", "1"]),
    )
    task = scheduling.Task(job="job", attempt=1, pipeline="p", training=training, schema=schema)
    return specification(task, RUN, "file:///store", in_memory_bytes)


def test_a_run_is_told_of_features_and_of_no_attribute() -> None:
    task = a_task("p", "file:///table")
    task.schema.attributes.add(
        name="sex", type=ingestion.FIELD_TYPE_INT8, role=ingestion.FIELD_ROLE_PROTECTED
    )
    spec = specification(task, RUN, "file:///store", 7)
    assert [column.name for column in spec.dataset.features] == features()
    assert "sex" not in spec.model_dump_json()


def test_a_feature_without_a_preparation_is_normalised_like_all() -> None:
    spec = told(scheduling.TrainingSpec(recipe="mlp", normalise=scheduling.NORMALISATION_ROBUST))
    assert spec.preparations == (
        Preparation(feature="area", normalise="robust"),
        Preparation(feature="grade", normalise="robust"),
    )


def test_preparations_come_in_the_features_order() -> None:
    wishes = [
        scheduling.Preparation(
            feature="grade",
            encode=scheduling.ENCODING_ONE_HOT,
            missing=scheduling.MISSING_RULE_CONSTANT,
            constant=3,
        ),
        scheduling.Preparation(
            feature="area",
            missing=scheduling.MISSING_RULE_MEDIAN,
            indicator=True,
            clip_max=9,
            log=True,
            normalise=scheduling.NORMALISATION_MIN_MAX,
        ),
    ]
    assert told(scheduling.TrainingSpec(recipe="mlp", preparations=wishes)).preparations == (
        Preparation(
            feature="area", missing="median", indicator=True, clip_max=9, log=True, normalise="min_max"
        ),
        Preparation(feature="grade", encode="one_hot", missing="constant", constant=3),
    )


def test_a_text_is_one_value_with_a_constant_of_its_own() -> None:
    schema = ingestion.Schema(
        key="k",
        features=[
            ingestion.Field(name="site", type=ingestion.FIELD_TYPE_STRING),
            ingestion.Field(name="area", type=ingestion.FIELD_TYPE_FLOAT32),
        ],
        label=ingestion.Field(name="y", type=ingestion.FIELD_TYPE_FLOAT32),
    )
    wish = scheduling.Preparation(
        feature="site",
        encode=scheduling.ENCODING_ORDINAL,
        missing=scheduling.MISSING_RULE_CONSTANT,
        text_constant="UNK",
    )
    training = scheduling.TrainingSpec(recipe="mlp", preparations=[wish])
    task = scheduling.Task(job="job", attempt=1, pipeline="p", training=training, schema=schema)
    spec = specification(task, RUN, "file:///store", 7)
    assert spec.preparations[0] == Preparation(
        feature="site", encode="ordinal", missing="constant", text_constant="UNK"
    )
    assert (spec.dataset.width, spec.dataset.numbers(), spec.dataset.texts()) == (2, ("area",), ("site",))
    assert spec.encoded_texts() == ("site",)


def test_a_run_with_other_preparations_takes_up_no_checkpoint() -> None:
    standard = told(scheduling.TrainingSpec(recipe="mlp", normalise=scheduling.NORMALISATION_STANDARD))
    same = told(scheduling.TrainingSpec(recipe="mlp", normalise=scheduling.NORMALISATION_STANDARD))
    robust = told(scheduling.TrainingSpec(recipe="mlp", normalise=scheduling.NORMALISATION_ROBUST))
    streamed = told(scheduling.TrainingSpec(recipe="mlp", normalise=scheduling.NORMALISATION_STANDARD), 0)
    assert standard.fingerprint() == same.fingerprint()
    assert len({spec.fingerprint() for spec in (standard, robust, streamed)}) == 3


def test_a_resized_image_is_prepared_as_what_it_becomes() -> None:
    image = ingestion.Field(name="image", type=ingestion.FIELD_TYPE_TENSOR)
    image.tensor.dtype, image.tensor.format = ingestion.TENSOR_DTYPE_UINT8, ingestion.TENSOR_FORMAT_PNG
    image.tensor.shape.extend([4, 4, 3])
    wish = scheduling.Preparation(
        feature="image",
        normalise=scheduling.NORMALISATION_STANDARD,
        resize=scheduling.ImageSize(height=1, width=2),
        per_channel=True,
    )
    schema = ingestion.Schema(
        key="k",
        features=[ingestion.Field(name="area", type=ingestion.FIELD_TYPE_FLOAT32), image],
        label=ingestion.Field(name="y", type=ingestion.FIELD_TYPE_INT8, allowed_values=["0", "1"]),
    )
    training = scheduling.TrainingSpec(recipe="mlp", preparations=[wish])
    task = scheduling.Task(job="job", attempt=1, pipeline="p", training=training, schema=schema)
    spec = specification(task, RUN, "file:///store", 7)
    assert spec.dataset.width == 1 + 48
    assert spec.spans() == (Span(1, 1), Span(6, 3))
    [resize] = spec.resizes()
    assert (resize.first, resize.values, resize.to_values, resize.channels) == (1, 48, 6, 3)


def test_values_that_are_not_prepared_by_channel_are_measured_alone() -> None:
    spec = told(scheduling.TrainingSpec(recipe="mlp"))
    assert spec.spans() == (Span(1, 1), Span(1, 1))
    assert spec.resizes() == ()


def test_many_values_of_a_tensor_share_a_name() -> None:
    small, large = (
        told(scheduling.TrainingSpec(recipe="mlp")).dataset.model_copy(
            update={
                "features": (
                    Column(name="area", type="float32"),
                    Column(name="image", type="tensor", tensor=TensorType("uint8", shape)),
                )
            }
        )
        for shape in ((2, 1), (128, 128))
    )
    assert small.numbers() == ("area", "image[0,0]", "image[1,0]")
    assert large.numbers() == ("area", "image[0:128,0:128]")
