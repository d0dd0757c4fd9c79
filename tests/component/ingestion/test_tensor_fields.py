"""Tensors and images as fields, from the topic to the table, its merged files and its readers."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import deltalake
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.component.ingestion.test_delta_tables import LEFT, NOW, open_tables
from tests.component.ingestion.test_maintenance import maintenance_of
from tests.support.ingestion import Ingestion
from tests.support.waiting import eventually

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.api.ingestion.v1 import versions_pb2 as versions
from headrace.datasets import Reader, Table, Tensors
from headrace.events.ingestion.v1.events_pb2 import Sample, Value
from headrace.ingestion.domain.columnar import stored_schema
from headrace.ingestion.domain.dataset import Dataset
from headrace.ingestion.domain.schema import Cut, Field, FieldType, Role, Schema, Treatment
from headrace.ingestion.domain.source import SOURCE_COLUMNS
from headrace.ingestion.use_cases.ports import Append, Span
from headrace.tensors import TensorType

IMAGE = api.Field(
    name="image",
    type=api.FIELD_TYPE_TENSOR,
    tensor=api.TensorType(dtype=api.TENSOR_DTYPE_UINT8, shape=[2, 3], format=api.TENSOR_FORMAT_PNG),
)
SIGNAL = api.Field(
    name="signal",
    type=api.FIELD_TYPE_TENSOR,
    nullable=True,
    tensor=api.TensorType(dtype=api.TENSOR_DTYPE_FLOAT32, shape=[2], format=api.TENSOR_FORMAT_RAW),
)


def pixels(number: int) -> np.typing.NDArray[np.uint8]:
    return np.arange(6, dtype=np.uint8).reshape(2, 3) + np.uint8(number)


def png(array: np.typing.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "png")
    return file.getvalue()


def sample(number: int, image: bytes) -> bytes:
    fields = {"id": f"p{number}", "image": base64.b64encode(image).decode(), "malignant": number % 2}
    return json.dumps(fields).encode()


@pytest.mark.broker
async def test_tensors_are_stored_as_they_came_and_read_in_their_shape(ingestion: Ingestion) -> None:
    process = await ingestion.start_ready()
    schema = api.Schema(key="id", features=[IMAGE, SIGNAL], label=ingestion.schema().label)
    async with ingestion.stub(process) as stub:
        applied = await stub.ApplyDataset(api.ApplyDatasetRequest(name=ingestion.dataset, schema=schema))
        assert applied.schema == schema
    signal = np.array([1, 2], "<f4").tobytes()
    binary = Sample(
        fields={
            "id": Value(string_value="p1"),
            "image": Value(bytes_value=png(pixels(1))),
            "signal": Value(bytes_value=signal),
            "malignant": Value(int_value=1),
        }
    )
    payloads = [
        sample(0, png(pixels(0))),
        binary.SerializeToString(),
        sample(2, png(pixels(2).T)),
        sample(3, b"no image"),
    ]
    protobuf = {1: {"content__type": "application/protobuf"}}
    headers = [
        ingestion.headers(f"{ingestion.dataset}-{number}", **protobuf.get(number, {})) for number in range(4)
    ]
    await ingestion.publish([(b"k", value, header) for value, header in zip(payloads, headers, strict=True)])
    first, second = await eventually(ingestion.rows, lambda rows: len(rows) == 2)
    assert (first["image"], first["signal"]) == (png(pixels(0)), None)
    assert (second["image"], second["signal"]) == (png(pixels(1)), signal)
    rejected = await eventually(lambda: ingestion.rejected(process), lambda found: len(found) == 2)
    assert sorted((sample.field, sample.rule, sample.reason) for sample in rejected) == [
        ("image", "decodes", "SCHEMA_VIOLATION"),
        ("image", "shape", "SCHEMA_VIOLATION"),
    ]
    async with ingestion.stub(process) as stub:
        version = await stub.CommitVersion(api.CommitVersionRequest(dataset=ingestion.dataset))
    name = versions.VersionName(number=1)
    async with ingestion.version_stub(process) as version_stub:
        profile = await version_stub.GetProfile(
            versions.GetProfileRequest(dataset=ingestion.dataset, version=name)
        )
        _, image, stored_signal, _ = profile.fields
        assert (image.type, image.count, image.null_count) == (api.FIELD_TYPE_TENSOR, 2, 0)
        assert (stored_signal.count, stored_signal.null_count) == (1, 1)
        answers = [
            answer
            async for answer in version_stub.ReplayVersion(
                versions.ReplayVersionRequest(dataset=ingestion.dataset, version=name)
            )
        ]
    assert answers[-1].result.same
    table = Table.open(version.table_uri, version.table_version)
    tensor = TensorType("uint8", (2, 3), "png")
    [(images,)] = Reader(table, [Tensors("image", tensor)], batch_rows=10)
    assert images.dtype == torch.uint8
    assert sorted(images.tolist()) == [pixels(0).tolist(), pixels(1).tolist()]


def append_of(dataset: Dataset, offset: int, **values: object) -> Append:
    row = {
        "id": f"k{offset}",
        "y": 1,
        **values,
        "_event_id": f"e{offset}",
        "_event_source": "tests",
        "_event_time": NOW,
        "_cluster": LEFT.cluster,
        "_topic": LEFT.topic,
        "_partition": LEFT.partition,
        "_offset": offset,
    }
    columns = pa.unify_schemas([stored_schema(dataset.schema), SOURCE_COLUMNS])
    rows = pa.Table.from_pylist([row], schema=columns)
    return Append(dataset, rows, [Span(LEFT, offset, offset + 1)])


def test_files_with_tensors_are_merged_and_keep_their_bytes(tmp_path: Path) -> None:
    tensor = TensorType("uint8", (2,))
    schema = Schema("id", (Field("t", FieldType.TENSOR, tensor=tensor),), Field("y", FieldType.INT8))
    dataset = Dataset("d", schema, Cut(), 1, NOW, NOW)
    tables = open_tables(tmp_path)
    expected = [bytes([255 - offset, 200]) for offset in range(4)]
    for offset, value in enumerate(expected):
        assert tables.append(append_of(dataset, offset, t=value)) == 1
    assert maintenance_of(tmp_path).merge(dataset).merged == len(expected)
    table = deltalake.DeltaTable(tables.uri("d"))
    assert len(table.file_uris()) == 1
    merged = Table.open(tables.uri("d"), table.version())
    assert sorted(merged.read(["t"]).column("t").to_pylist()) == sorted(expected)


def test_of_what_is_encrypted_files_have_neither_dictionary_nor_statistics(tmp_path: Path) -> None:
    tensor = TensorType("uint8", (2,))
    personal = [
        Field(f"face_{treatment.value}", FieldType.TENSOR, True, tensor=tensor, role=Role.PERSONAL)
        for treatment in Treatment
    ]
    faces = tuple(replace(face, treatment=each) for face, each in zip(personal, Treatment, strict=True))
    schema = Schema("id", (Field("a", FieldType.FLOAT32, True),), Field("y", FieldType.INT8), faces)
    tables = open_tables(tmp_path)
    covered = {"face_pseudonymise": "k1.YWI", "face_encrypt": "k1.Y2Q"}
    assert tables.append(append_of(Dataset("d", schema, Cut(), 1, NOW, NOW), 0, **covered)) == 1
    [file] = (tmp_path / "d").glob("*.parquet")
    written = pq.read_metadata(file)
    described = {
        column.path_in_schema: (column.has_dictionary_page, column.is_stats_set)
        for column in map(written.row_group(0).column, range(written.num_columns))
    }
    assert "face_drop" not in described
    assert described["face_pseudonymise"][0]
    assert described["face_encrypt"] == (False, False)
