from __future__ import annotations

from collections.abc import Mapping

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from headrace.errors import InvalidArgument
from headrace.recipes import MlpParameters, check_label, get_recipe, parse_parameters


def failure(parameters: Mapping[str, object], recipe: str = "mlp") -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        parse_parameters(recipe, parameters)
    return caught.value


def mlp(**parameters: object) -> MlpParameters:
    parsed = parse_parameters("mlp", parameters)
    assert isinstance(parsed, MlpParameters)
    return parsed


def test_an_unknown_recipe_is_told_which_ones_exist() -> None:
    error = failure({}, "transformer")
    assert error.reason == "UNKNOWN_RECIPE"
    assert "'transformer'" in error.message
    assert "mlp" in error.message
    assert error.fields[0].field == "training.recipe"


def test_an_unknown_parameter_is_told_which_ones_exist() -> None:
    error = failure({"learning_rat": 0.1, "epochs": 3})
    assert error.reason == "UNKNOWN_PARAMETER"
    assert [field.field for field in error.fields] == ["training.parameters.learning_rat"]
    assert "learning_rate" in error.message


def test_an_unknown_nested_parameter_is_told_its_siblings() -> None:
    error = failure({"early_stopping": {"patienc": 3}})
    assert error.reason == "UNKNOWN_PARAMETER"
    assert "patience, min_delta" in error.message


@pytest.mark.parametrize(
    ("parameters", "field", "says"),
    [
        ({"activation": "gelu"}, "activation", "'relu', 'sigmoid' or 'tanh'"),
        ({"loss": "hinge"}, "loss", "'cross_entropy' or 'mse'"),
        ({"optimizer": "lion"}, "optimizer", "'sgd' or 'adam'"),
        ({"learning_rate": 0}, "learning_rate", "greater than 0"),
        ({"learning_rate": "0.1"}, "learning_rate", "must be a number"),
        ({"epochs": 2.5}, "epochs", "integer"),
        ({"epochs": True}, "epochs", "must be a number"),
        ({"hidden": [8, 0]}, "hidden.1", "greater than or equal to 1"),
        ({"hidden": 8}, "hidden", "tuple"),
        ({"batch_size": -1}, "batch_size", "greater than or equal to 0"),
        ({"early_stopping": {"patience": 0}}, "early_stopping.patience", "greater than or equal to 1"),
    ],
)
def test_an_invalid_parameter_is_told_what_is_allowed(
    parameters: Mapping[str, object], field: str, says: str
) -> None:
    error = failure(parameters)
    assert error.reason == "INVALID_PARAMETER"
    assert [violation.field for violation in error.fields] == [f"training.parameters.{field}"]
    assert says in error.message


def test_all_mistakes_are_told_at_once() -> None:
    error = failure({"epochs": 0, "activation": "gelu"})
    assert [field.field for field in error.fields] == [
        "training.parameters.activation",
        "training.parameters.epochs",
    ]


def test_momentum_belongs_to_sgd() -> None:
    assert mlp(optimizer="sgd", momentum=0.9).momentum == 0.9
    assert "sgd" in failure({"optimizer": "adam", "momentum": 0.9}).message


def test_parameters_survive_a_protobuf_struct_which_knows_only_floats() -> None:
    struct = Struct()
    struct.update({"hidden": [64, 32], "epochs": 60, "batch_size": None, "early_stopping": {"patience": 3}})
    parsed = mlp(**json_format.MessageToDict(struct))
    assert parsed.hidden == (64, 32)
    assert parsed.epochs == 60
    assert parsed.batch_size is None
    assert parsed.early_stopping is not None
    assert parsed.early_stopping.patience == 3


def test_no_hidden_layer_is_a_linear_model() -> None:
    assert mlp(hidden=[]).hidden == ()


def test_cross_entropy_needs_classes() -> None:
    check_label(mlp(loss="cross_entropy"), label="malignant", classes=2)
    check_label(mlp(loss="mse"), label="progression", classes=0)
    with pytest.raises(InvalidArgument, match="'progression' has none"):
        check_label(mlp(loss="cross_entropy"), label="progression", classes=0)


def test_every_parameter_of_every_recipe_is_described() -> None:
    schema = get_recipe("mlp").parameters.model_json_schema()
    assert all(field.get("description") for field in schema["properties"].values())
