"""Predictions as rows: which columns they have, how a dataset comes to have them, and what a row holds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.errors import FailedPrecondition, NotFound
from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.domain.log_table import OWN, Kind, columns_of, fitting
from headrace.inference.log_tables import GrpcLogTables, NoLogTables, fields_of, schema_with
from headrace.inference.use_cases.log_table import rows_of
from headrace.inference.use_cases.ports import LoggedPrediction
from headrace.inference.use_cases.table_ports import TabledPrediction
from headrace.ingestion.domain.schema import check_schema
from headrace.ingestion.translation import schema_from_message

if TYPE_CHECKING:
    from headrace.api.ingestion.v1.ingestion_pb2_grpc import IngestionServiceAsyncStub

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LABEL = Tensor("label", "INT64", (-1,))


def version(
    *inputs: Tensor,
    outputs: Sequence[Tensor] = (LABEL,),
    features: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> ServedVersion:
    return ServedVersion(
        "m", 1, "", "", inputs, tuple(outputs), (), b"", "", features=tuple(features), texts=tuple(texts)
    )


def names(served: ServedVersion) -> list[str]:
    return [column.name for column in columns_of(served)]


def test_columns_are_named_by_the_signature_and_of_other_inputs_by_their_tensors() -> None:
    served = version(
        Tensor("features", "FP32", (-1, 2)),
        Tensor("texts", "BYTES", (-1, 1)),
        Tensor("age", "INT64", (-1,)),
        Tensor("pair", "FP64", (-1, 2)),
        features=("radius", "grade"),
        texts=("city",),
    )
    assert names(served) == ["radius", "grade", "city", "age", "pair_0", "pair_1", "answer"]
    kinds = {column.name: column.kind for column in columns_of(served)}
    assert kinds["city"] is Kind.TEXT
    assert kinds["age"] is kinds["answer"] is Kind.NUMBER


def test_images_and_tensors_of_any_size_are_no_columns() -> None:
    image = version(
        Tensor("features", "FP32", (-1, 5)), features=("a", *(f"scan[{place}]" for place in range(4)))
    )
    [first, answer] = columns_of(image)
    assert (first.name, first.place, first.width, answer.name) == ("a", 0, 5, "answer")
    assert names(version(Tensor("pixels", "UINT8", (-1, 8, 9)))) == ["answer"]
    assert names(version(Tensor("any", "FP32", (-1, -1)))) == ["answer"]


def test_the_answer_is_the_label_or_else_the_first_that_is_one_value() -> None:
    vector, number = Tensor("scores", "FP32", (-1, 2)), Tensor("score", "FP32", (-1, 1))
    answers = version(outputs=(vector, number, LABEL))
    assert names(answers) == ["answer_scores_0", "answer_scores_1", "answer_score", "answer"]
    assert names(version(outputs=(vector, number)))[-1] == "answer"
    assert names(version(outputs=(vector,))) == ["answer_scores_0", "answer_scores_1"]


@given(
    st.lists(st.text(min_size=1, max_size=70), unique=True, max_size=8),
    st.lists(st.sampled_from(OWN), unique=True),
)
def test_each_column_has_a_name_of_its_own_that_a_dataset_takes(
    some: list[str], taken: Sequence[str]
) -> None:
    features = [*some, *taken, "Seconds", "input_seconds"]
    features = [name for name in dict.fromkeys(features) if not name.endswith("]")]
    served = version(Tensor("features", "FP32", (-1, len(features))), features=features)
    schema = schema_with(None, columns_of(served), {})
    check_schema(schema_from_message(schema))
    assert len(schema.features) == len(features)


def test_a_dataset_grows_by_what_a_later_version_takes_and_keeps_what_it_has() -> None:
    first = version(Tensor("features", "FP32", (-1, 1)), features=("a",))
    schema = schema_with(None, columns_of(first), {})
    assert schema_with(schema, columns_of(first), {}) == schema
    second = version(
        Tensor("features", "FP32", (-1, 1)), features=("b",), outputs=(replace(LABEL, datatype="BYTES"),)
    )
    known = {
        name: Kind.TEXT if field.type == api.FIELD_TYPE_STRING else Kind.NUMBER
        for name, field in fields_of(schema).items()
    }
    columns = fitting(columns_of(second), known)
    # One column holds numbers or texts.
    assert [column.name for column in columns] == ["b", "answer_text"]
    grown = schema_with(schema, columns, {})
    assert [field.name for field in grown.features] == ["a", "b"]
    assert all(field.nullable for field in grown.features)
    assert grown.label == schema.label
    assert list(grown.attributes)[: len(schema.attributes)] == list(schema.attributes)


def test_a_dataset_of_no_columns_has_one_feature_all_the_same() -> None:
    schema = schema_with(None, columns_of(version(Tensor("pixels", "UINT8", (-1, 99)))), {})
    assert [field.name for field in schema.features] == ["seconds"]
    check_schema(schema_from_message(schema))


def test_what_is_personal_is_treated_as_in_the_training_data_and_rules_do_not_bound_what_is_asked() -> None:
    trained_on = {
        "a": api.Field(
            name="a", min=0, max=1, allowed_values=["0"], role=api.FIELD_ROLE_PROTECTED, unit="mm"
        ),
        "b": api.Field(name="b", role=api.FIELD_ROLE_PERSONAL, treatment=api.FIELD_TREATMENT_ENCRYPT),
        "c": api.Field(name="c", role=api.FIELD_ROLE_PERSONAL),
    }
    served = version(
        Tensor("features", "FP32", (-1, 1)),
        Tensor("b", "BYTES", (-1, 1)),
        Tensor("c", "FP32", (-1,)),
        features=("a",),
    )
    fields = fields_of(schema_with(None, columns_of(served), trained_on))
    assert fields["a"] == api.Field(
        name="a", type=api.FIELD_TYPE_FLOAT64, nullable=True, role=api.FIELD_ROLE_PROTECTED, unit="mm"
    )
    assert (fields["b"].role, fields["b"].treatment) == (
        api.FIELD_ROLE_PERSONAL,
        api.FIELD_TREATMENT_ENCRYPT,
    )
    # Without a stated treatment it is dropped, as there.
    assert (fields["c"].role, fields["c"].treatment) == (
        api.FIELD_ROLE_PERSONAL,
        api.FIELD_TREATMENT_UNSPECIFIED,
    )


def logged(rows: int = 1, **changes: object) -> TabledPrediction:
    prediction = LoggedPrediction(
        event_id="e",
        prediction_id="p",
        deployment="d",
        version=1,
        time=NOW,
        seconds=0.5,
        inputs={
            "features": {"datatype": "FP32", "shape": [rows, 2], "data": [1.0, "NaN", 3.0, 4.0][: 2 * rows]}
        },
        outputs={"label": {"datatype": "INT64", "shape": [rows, 1], "data": [1.0, 0.0][:rows]}},
        answer=None,
        traceparent="",
    )
    return TabledPrediction(replace(prediction, **changes), "table", "m")  # type: ignore[arg-type]


PAIR = version(Tensor("features", "FP32", (-1, 2)), features=("a", "b"))


def test_a_row_has_what_was_asked_and_answered_and_an_id_that_stays() -> None:
    [row] = rows_of(logged(traceparent=f"00-{'a' * 32}-{'b' * 16}-01", subject="s"), columns_of(PAIR))
    assert (row.event_id, row.dataset, row.key, row.time) == ("e", "table", "s", NOW)
    assert json.loads(row.data) == {
        "subject": "s",
        "prediction_id": "p",
        "deployment": "d",
        "model": "m",
        "model_version": 1,
        "row": 0,
        "seconds": 0.5,
        "trace_id": "a" * 32,
        "segment": None,
        "shadow": False,
        "a": 1.0,
        # JSON has no such number.
        "b": None,
        "answer": 1.0,
    }


def test_a_request_for_several_rows_is_several() -> None:
    rows = rows_of(logged(2), columns_of(PAIR))
    assert [row.event_id for row in rows] == ["e/0", "e/1"]
    # Nobody was named.
    assert {row.key for row in rows} == {"p"}
    found = [json.loads(row.data) for row in rows]
    assert [(one["a"], one["b"], one["answer"], one["row"]) for one in found] == [
        (1.0, None, 1.0, 0),
        (3.0, 4.0, 0.0, 1),
    ]


@pytest.mark.parametrize("data", [[], None, [1.0], ["x", "y"], [math.inf, -math.inf]])
def test_what_was_not_logged_or_is_no_number_is_null(data: object) -> None:
    [row] = rows_of(logged(inputs={"features": {"shape": [1, 2], "data": data}}), columns_of(PAIR))
    found = json.loads(row.data)
    assert (found["a"], found["b"], found["answer"]) == (None, None, 1.0)


class PlayedIngestion:
    """Keeps what is applied, and does what happens meanwhile before the first time."""

    def __init__(self, *datasets: api.Dataset) -> None:
        self.datasets = {dataset.name: dataset for dataset in datasets}
        self.meanwhile: api.Dataset | None = None

    async def GetDataset(self, request: api.GetDatasetRequest) -> api.Dataset:
        if request.name not in self.datasets:
            raise NotFound("DATASET_NOT_FOUND", request.name)
        return self.datasets[request.name]

    async def ApplyDataset(self, request: api.ApplyDatasetRequest) -> api.Dataset:
        if self.meanwhile is not None:
            self.datasets[request.name], self.meanwhile = self.meanwhile, None
        known = self.datasets.get(request.name)
        if known is not None and not fields_of(known.schema).keys() <= fields_of(request.schema).keys():
            raise FailedPrecondition("INCOMPATIBLE_SCHEMA", "it lacks a field")
        applied = api.Dataset(name=request.name, schema=request.schema, cut=request.cut)
        self.datasets[request.name] = applied
        return applied

    def tables(self) -> GrpcLogTables:
        return GrpcLogTables(cast("IngestionServiceAsyncStub", self))


ONE = version(Tensor("features", "FP32", (-1, 1)), features=("a",))
TRAINED = replace(ONE, dataset="training")


async def test_of_two_who_declare_at_once_both_get_what_they_need() -> None:
    ingestion = PlayedIngestion()
    schema = schema_with(None, columns_of(PAIR), {})
    ingestion.meanwhile = api.Dataset(name="t", schema=schema, cut=api.Cut(rows=5))
    other = version(Tensor("features", "FP32", (-1, 1)), features=("c",))
    assert [column.name for column in await ingestion.tables().columns("t", other)] == ["c", "answer"]
    assert {"a", "b", "c"} <= fields_of(ingestion.datasets["t"].schema).keys()
    # What its owner said of it.
    assert ingestion.datasets["t"].cut.rows == 5


async def test_what_is_personal_is_not_sent_to_a_column_that_has_it_in_clear() -> None:
    personal = api.Field(name="a", role=api.FIELD_ROLE_PERSONAL, treatment=api.FIELD_TREATMENT_ENCRYPT)
    training = api.Dataset(name="training", schema=api.Schema(key="id", attributes=[personal]))
    ingestion = PlayedIngestion(training)
    assert [column.name for column in await ingestion.tables().columns("covered", TRAINED)] == ["a", "answer"]
    await ingestion.tables().columns("clear", ONE)
    assert [column.name for column in await ingestion.tables().columns("clear", TRAINED)] == ["answer"]


async def test_without_the_training_datas_fields_nothing_is_declared() -> None:
    ingestion = PlayedIngestion()
    with pytest.raises(NotFound):
        await ingestion.tables().columns("t", TRAINED)
    assert ingestion.datasets == {}


async def test_a_dataset_that_holds_something_else_is_left_alone() -> None:
    samples = api.Dataset(name="t", schema=api.Schema(key="subject", features=[api.Field(name="a")]))
    ingestion = PlayedIngestion(samples)
    for asked in (ingestion.tables().check("t"), ingestion.tables().columns("t", ONE)):
        with pytest.raises(FailedPrecondition) as refused:
            await asked
        assert refused.value.reason == "LOG_DATASET_TAKEN"
    assert ingestion.datasets == {"t": samples}
    with pytest.raises(FailedPrecondition) as unnamed:
        await NoLogTables().columns("t", ONE)
    assert unnamed.value.reason == "INGESTION_NOT_NAMED"
