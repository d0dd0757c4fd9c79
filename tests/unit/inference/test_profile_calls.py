"""A dataset version's profile, as ingestion answers it, is what requests are compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tests.unit.inference.test_drift_watch import BEGAN

from headrace.api.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc, versions_pb2, versions_pb2_grpc
from headrace.errors import NotFound
from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.drift import Column, DriftRules, Numbers, Values, judge
from headrace.inference.profile_calls import QUANTILES, profile_client, reference_of
from headrace.inference.use_cases.drift_ports import LoggedRequest
from headrace.inference.use_cases.drift_windows import window_of
from headrace.ingestion.domain.columnar import stored_schema
from headrace.ingestion.domain.profile import extended
from headrace.ingestion.domain.schema import Field, FieldType, Schema
from headrace.ingestion.profile_translation import profile_to_message
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.health import Health

FIELDS = (
    Field("radius", FieldType.FLOAT64, nullable=True),
    Field("age", FieldType.INT32),
    Field("grade", FieldType.INT8),
    Field("smoker", FieldType.BOOL),
    Field("site", FieldType.STRING),
)
SCHEMA = Schema("id", FIELDS, Field("sick", FieldType.STRING, allowed_values=("no", "yes")))
NUMBERS = ("radius", "age", "grade", "smoker")
LONG = "a site's name that is longer than what is counted of a text, by far: " * 3
VERSION = ServedVersion("m", 1, "", "", (), (), ('"no"', '"yes"'), b"", "", features=NUMBERS, texts=("site",))


def table(seed: int, rows: int = 2000) -> pa.RecordBatch:
    rng = np.random.default_rng(seed)
    radius = rng.normal(0, 1, rows)
    columns = {
        "id": [str(number) for number in range(rows)],
        "radius": [None if number % 10 == 0 else value for number, value in enumerate(radius)],
        "age": rng.integers(20, 90, rows).tolist(),
        "grade": rng.integers(1, 4, rows).tolist(),
        "smoker": (rng.random(rows) < 0.3).tolist(),
        "site": rng.choice(["north", "south", LONG], rows).tolist(),
        "sick": rng.choice(["no", "yes"], rows, p=[0.8, 0.2]).tolist(),
    }
    schema = stored_schema(SCHEMA)
    return pa.RecordBatch.from_arrays(
        [pa.array(columns[name], schema.field(name).type) for name in schema.names], schema=schema
    )


TRAINED_ON = extended(None, SCHEMA, [table(1)])
REFERENCE = reference_of(profile_to_message(TRAINED_ON, QUANTILES), "sick", VERSION.classes)


def asked(batch: pa.RecordBatch) -> LoggedRequest:
    """The rows as one request, as the runtime logs it."""
    rows = batch.to_pylist()
    numbers = [float(row[name]) if row[name] is not None else "NaN" for row in rows for name in NUMBERS]
    return LoggedRequest(
        BEGAN,
        {
            "features": {"datatype": "FP32", "shape": [len(rows), len(NUMBERS)], "data": numbers},
            "texts": {"datatype": "BYTES", "shape": [len(rows), 1], "data": [row["site"] for row in rows]},
        },
        {
            "probabilities": {"shape": [len(rows), 2], "data": [0.5] * 2 * len(rows)},
            "label": {"shape": [len(rows), 1], "data": [["no", "yes"].index(row["sick"]) for row in rows]},
        },
    )


def test_columns_are_numbers_or_values_as_their_types_say() -> None:
    kinds = {name: type(column.of) for name, column in REFERENCE.columns.items() if column.of is not None}
    assert kinds == {
        "radius": Numbers,
        "age": Numbers,
        "grade": Values,
        "smoker": Values,
        "site": Values,
        "sick": Values,
    }
    assert REFERENCE.columns["radius"].missing == 200
    radius = REFERENCE.columns["radius"].of
    assert isinstance(radius, Numbers)
    assert radius.ranks == tuple(hundredth / 100 for hundredth in range(1, 100))
    assert REFERENCE.answers is not None
    assert set(REFERENCE.answers.counts) == {0.0, 1.0}


def test_rows_like_those_that_were_trained_on_are_no_drift() -> None:
    found = judge(DriftRules(), REFERENCE, window_of([asked(table(2))], VERSION))
    assert [finding.column for finding in found] == ["radius", "radius", *NUMBERS[1:], "site", "prediction"]
    assert not any(finding.drifts for finding in found)


def test_what_cannot_be_compared_is_left_out() -> None:
    """An input that was too large to be logged, and one of another form."""
    request = asked(table(3))
    features = {**request.inputs["features"], "data": []}
    texts = {**request.inputs["texts"], "data": ["north"]}
    window = window_of([LoggedRequest(BEGAN, {"features": features, "texts": texts}, {})], VERSION)
    assert window.rows == 2000
    assert judge(DriftRules(), REFERENCE, window) == ()


def test_a_column_of_which_nothing_is_known_is_none() -> None:
    assert REFERENCE.columns["id"] == Column(None)


class Ingestion(ingestion_pb2_grpc.IngestionServiceServicer, versions_pb2_grpc.DatasetVersionServiceServicer):
    """Knows one version of one dataset."""

    def __init__(self) -> None:
        self.asked = 0

    async def GetDataset(self, request: Any, context: Any) -> ingestion_pb2.Dataset:
        return ingestion_pb2.Dataset(schema=ingestion_pb2.Schema(label=ingestion_pb2.Field(name="sick")))

    async def GetProfile(self, request: Any, context: Any) -> versions_pb2.Profile:
        self.asked += 1
        if (request.dataset, request.version.number) != ("scans", 7):
            raise NotFound("VERSION_EXPIRED", "it was forgotten")
        return profile_to_message(TRAINED_ON, request.quantile_count)


async def test_a_profile_is_asked_for_once_and_what_keeps_it_away_is_told() -> None:
    ingestion = Ingestion()
    services = (
        (ingestion_pb2_grpc.add_IngestionServiceServicer_to_server, "IngestionService"),
        (versions_pb2_grpc.add_DatasetVersionServiceServicer_to_server, "DatasetVersionService"),
    )
    bindings = [ServiceBinding(add, ingestion, f"headrace.api.ingestion.v1.{name}") for add, name in services]
    version = replace(VERSION, dataset="scans", dataset_version=7)
    async with (
        serve("127.0.0.1:0", bindings, health=Health(), drain_seconds=0.2) as server,
        profile_client(f"127.0.0.1:{server.port}") as profiles,
    ):
        assert await profiles.reference(version) == REFERENCE
        assert await profiles.reference(version) == REFERENCE
        assert ingestion.asked == 1
        with pytest.raises(NotFound) as caught:
            await profiles.reference(replace(version, version=2, dataset_version=8))
    assert caught.value.reason == "VERSION_EXPIRED"
