"""What a version's signature and a prediction in the log say to explanations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headrace.api.ingestion.v1 import versions_pb2
from headrace.errors import FailedPrecondition, InvalidArgument
from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.domain.explanations import ExplainedModel, baseline_row, value_texts
from headrace.inference.training_profiles import typical_value
from headrace.model_formats import ModelFormat

NUMBERS = Tensor("features", "FP32", (-1, 2))
TEXTS = Tensor("texts", "BYTES", (-1, 1))
PROBABILITIES = Tensor("probabilities", "FP32", (-1, 2))
LABEL = Tensor("label", "INT64", (-1,))


def version(
    *inputs: Tensor,
    outputs: tuple[Tensor, ...] = (PROBABILITIES, LABEL),
    classes: tuple[str, ...] = ("0", '"red"'),
    features: tuple[str, ...] = ("age", "height"),
    form: ModelFormat = ModelFormat.ONNX,
) -> ServedVersion:
    return ServedVersion(
        model="people",
        version=3,
        uri="",
        sha256="",
        inputs=inputs,
        outputs=outputs,
        classes=classes,
        signature=b"",
        traceparent="",
        features=features,
        texts=("colour",),
        format=form,
    )


def test_rows_are_cut_out_of_what_comes_row_by_row() -> None:
    model = ExplainedModel.of(version(NUMBERS, TEXTS))
    table = model.table([1, 2, 3, math.nan], ["red", ""])
    assert np.array_equal(table.numbers, [[1, 2], [3, math.nan]], equal_nan=True)
    assert table.texts == (("red",), ("",))
    only_texts = ExplainedModel.of(version(TEXTS))
    assert only_texts.table([], ["a", "b"]).numbers.shape == (2, 0)
    assert ExplainedModel.of(version(NUMBERS)).table([1, 2], []).texts == ((),)


@pytest.mark.parametrize(
    ("numbers", "texts"),
    [([], []), ([1], ["red"]), ([1, 2], []), ([1, 2], ["a", "b"]), ([1, 2, 3, 4], ["a"])],
)
def test_what_are_no_rows_of_the_model_is_refused(numbers: list[float], texts: list[str]) -> None:
    with pytest.raises(InvalidArgument, match="2 numbers and 1 texts") as caught:
        ExplainedModel.of(version(NUMBERS, TEXTS)).table(numbers, texts)
    assert caught.value.reason == "INVALID_ROWS"


@pytest.mark.parametrize(
    "unknown",
    [
        version(Tensor("tokens", "INT64", (-1, 2))),
        version(Tensor("image", "FP32", (-1, 8, 8))),
        version(Tensor("features", "FP32", (-1, -1))),
        version(NUMBERS, Tensor("more", "FP32", (-1, 2))),
        version(NUMBERS, outputs=(LABEL,)),
        version(),
        version(NUMBERS, TEXTS, form=ModelFormat.TORCHSCRIPT),
        version(TEXTS, form=ModelFormat.TORCH_EXPORT),
        version(NUMBERS, outputs=(LABEL,), form=ModelFormat.PYTHON),
    ],
)
def test_a_model_of_another_kind_is_refused(unknown: ServedVersion) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        ExplainedModel.of(unknown)
    assert caught.value.reason == "NOT_EXPLAINABLE"
    assert f"which is {unknown.format}, cannot be explained" in str(caught.value)


@pytest.mark.parametrize("form", [ModelFormat.TORCHSCRIPT, ModelFormat.TORCH_EXPORT])
def test_of_a_program_of_pytorchs_the_place_of_the_output_is_known(form: ModelFormat) -> None:
    model = ExplainedModel.of(version(NUMBERS, outputs=(LABEL, PROBABILITIES), form=form))
    assert (model.outputs.index(model.output), model.numbers, model.texts) == (1, "features", "")


def test_a_predictions_inputs_are_read_from_the_log() -> None:
    model = ExplainedModel.of(version(NUMBERS, TEXTS))
    inputs = {
        "features": {"datatype": "FP32", "shape": [1, 2], "data": [1.5, "NaN"]},
        "texts": {"datatype": "BYTES", "shape": [1, 1], "data": ["red"]},
    }
    table = model.logged(inputs)
    assert np.array_equal(table.numbers, [[1.5, math.nan]], equal_nan=True)
    assert table.texts == (("red",),)


@pytest.mark.parametrize("inputs", [{}, {"features": {"datatype": "FP32", "shape": [1, 9000], "data": []}}])
def test_inputs_that_the_log_has_not_are_not_explained(inputs: dict[str, object]) -> None:
    with pytest.raises(FailedPrecondition) as caught:
        ExplainedModel.of(version(NUMBERS)).logged(inputs)
    assert caught.value.reason == "INPUTS_NOT_STORED"


def test_a_class_is_named_as_json_or_as_it_is() -> None:
    of = version(NUMBERS)
    model = ExplainedModel.of(of)
    assert [model.place(of, name) for name in ("", "0", "red", '"red"')] == [None, 0, 1, 1]
    with pytest.raises(InvalidArgument, match='0, "red"') as caught:
        model.place(of, "blue")
    assert caught.value.reason == "UNKNOWN_CLASS"


def test_columns_that_the_signature_does_not_name_are_features_by_their_places() -> None:
    of = version(NUMBERS, TEXTS, features=("age",))
    assert ExplainedModel.of(of).features(of, 8).names == ("features 0", "features 1", "texts 0")


def test_a_baseline_has_typical_values_and_zeros_where_there_is_none() -> None:
    of = version(Tensor("features", "FP32", (-1, 3)), TEXTS, features=("age", "photo[0]", "photo[1]"))
    model = ExplainedModel.of(of)
    features = model.features(of, 1)
    assert baseline_row(features, {"age": 31.0, "colour": "red", "photo": 4.0}) == ([31, 0, 0], ["red"])
    # What has changed its kind since is of no use.
    assert baseline_row(features, {"age": "old", "colour": 1.0}) == ([0, 0, 0], [""])
    table = model.table([0.1, 2, 3, math.nan, 2, 3], ["réd", ""])
    assert [value_texts(row, table, features) for row in (0, 1)] == [["0.1", "", '"réd"'], ["null", "", '""']]


def a_field(count: int = 10, median: float | None = None, **top: int) -> versions_pb2.FieldProfile:
    field = versions_pb2.FieldProfile(
        count=count,
        top_values=[versions_pb2.ValueCount(value=value, count=many) for value, many in top.items()],
    )
    if median is not None:
        field.numbers.quantiles.add(rank=0.25, value=-1)
        field.numbers.quantiles.add(rank=0.5, value=median)
    return field


@pytest.mark.parametrize(
    ("field", "typical"),
    [
        (a_field(median=2.5), 2.5),
        # Few whole numbers may be categories; of many the middle one says more than the most frequent.
        (a_field(median=2, **{"7": 6, "2": 4}), 7.0),
        (a_field(median=2, **{"7": 3, "2": 2}), 2.0),
        (a_field(**{'"red"': 6, '"blue"': 4}), "red"),
        (a_field(true=6, false=4), 1.0),
        # A long text's digest is no text that a model knows.
        (a_field(**{f'"{"x" * 47}…{"0" * 16}"': 6, '"blue"': 4}), "blue"),
        (a_field(), None),
    ],
)
def test_typical_is_the_median_or_the_most_frequent_value(
    field: versions_pb2.FieldProfile, typical: float | str | None
) -> None:
    assert typical_value(field) == typical
