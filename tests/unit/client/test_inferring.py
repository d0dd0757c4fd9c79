"""A proposed section is one that a pipeline's file takes, and its schema takes the file that it came from."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.client import pipeline_file
from headrace.client.data_files import read_rows
from headrace.client.inferring import propose
from headrace.errors import InvalidArgument
from headrace.ingestion import translation
from headrace.ingestion.domain.columnar import ColumnReader
from headrace.ingestion.domain.schema import check_schema
from headrace.native import Spans

CSV = """\
patient_id,mean_radius,grade,age,sex,email,taken,Mean X,site,malignant
p1,1.5,3,40,f,a@b.c,2026-01-02T03:04:05Z,1,left,1
p2,2.5,300,50,m,,2026-01-02T03:04:06Z,1,right,0
p3,,4,60,m,x@y.z,2026-01-02T03:04:06Z,1,left,0
"""


def schema_of(section: str) -> ingestion.Schema:
    text = (
        "apiVersion: headrace.dev/v1\nkind: Pipeline\nmetadata: {name: a}\nspec:\n"
        + textwrap.indent(section, "  ")
        + "  training: {recipe: mlp}\n"
    )
    return pipeline_file.parse(text).request.spec.dataset.schema


def valid_rows(file: Path, schema: ingestion.Schema) -> int:
    domain = translation.schema_from_message(schema)
    check_schema(domain)
    columns = ColumnReader(domain).read_json(Spans.of(row.json for row in read_rows(file, schema)))
    assert columns.faults == [] or columns.faults == ()
    return len(columns.accepted)


def test_columns_get_narrow_types_roles_and_reasons(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(CSV)
    assert propose(file) == (
        "# 3 rows of a.csv were looked at.\n"
        "# 'Mean X' is left out: rename it to lower-case letters, digits and _\n"
        "dataset:\n"
        "  key: patient_id  # named like a key, and unique in this file\n"
        "  features:\n"
        "    mean_radius: {type: float32, nullable: true}\n"
        "    grade: {type: int16}\n"
        "    age: {type: int8, role: protected}  # protected by its name; models learn from it all the same\n"
        "  label: {name: malignant, type: int8, classes: [0, 1]}  # a guess: the last column of numbers\n"
        "  attributes:  # stored, and given to no model\n"
        "    sex: {type: string, role: protected}  # by its name\n"
        "    email: {type: string, nullable: true, role: personal}"
        "  # by its name; dropped, unless you add a treatment\n"
        "    taken: {type: timestamp, role: time}  # the first time in the file\n"
        "    site: {type: string, role: ignored}  # text: as a feature, it must be encoded\n"
    )


def test_a_strict_proposal_takes_what_the_file_has_and_tells_no_persons_data(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(CSV.replace("Mean X", "mean_x"))
    section = propose(file, strict=True)
    assert "mean_radius: {type: float32, nullable: true, min: 1.5, max: 2.5}" in section
    assert 'site: {type: string, role: ignored, values: ["left", "right"]}' in section
    assert "x@y.z" not in section
    assert valid_rows(file, schema_of(section)) == 3


def test_key_and_label_can_be_said(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(CSV)
    schema = schema_of(propose(file, key="site", label="grade"))
    assert (schema.key, schema.label.name, list(schema.label.allowed_values)) == (
        "site",
        "grade",
        ["3", "4", "300"],
    )
    with pytest.raises(InvalidArgument) as missing:
        propose(file, label="grad")
    assert missing.value.reason == "NO_SUCH_COLUMN"
    with pytest.raises(InvalidArgument, match="left out"):
        propose(file, key="Mean X")


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", "id,x,y\n"), ("a.csv", "id,X,y\n1,2,3\n"), ("a.jsonl", '{"a": 1}')]
)
def test_what_makes_no_dataset_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidArgument) as caught:
        propose(tmp_path / name)
    assert caught.value.reason == "NOTHING_TO_INFER"


def test_json_lines_with_numbers_as_keys_say_so(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"id": 1, "x": 20000000.5, "z": {"a": 1}, "label": "no"}\n{"id": 2, "x": 1, "label": "yes"}\n'
    )
    section = propose(file)
    assert "key: id  # named like a key, and unique in this file; a number in this file" in section
    assert "x: {type: float64}" in section
    assert 'label: {name: label, type: string, classes: ["no", "yes"]}  # named like a label' in section
    assert "'z' is left out: a sample is flat" in section


COLUMNS = {
    "whole": st.integers(-(2**63), 2**63 - 1),
    "small": st.integers(-200, 200),
    "flag": st.booleans(),
    "part": st.floats(allow_nan=True, allow_infinity=False),
    "word": st.text(max_size=4),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(
        st.fixed_dictionaries({name: st.none() | values for name, values in COLUMNS.items()}),
        min_size=1,
        max_size=8,
    ),
    st.booleans(),
)
def test_a_proposal_takes_its_own_file(tmp_path: Path, rows: list[dict[str, object]], strict: bool) -> None:
    file = tmp_path / "any.parquet"
    types = {
        "whole": pa.int64(),
        "small": pa.int64(),
        "flag": pa.bool_(),
        "part": pa.float64(),
        "word": pa.string(),
    }
    schema = pa.schema([("id", pa.string()), *types.items(), ("x", pa.int64()), ("y", pa.int64())])
    keyed = [{**row, "id": f"p{number}", "x": number, "y": number % 2} for number, row in enumerate(rows)]
    pq.write_table(pa.Table.from_pylist(keyed, schema=schema), file)
    assert valid_rows(file, schema_of(propose(file, strict=strict))) == len(rows)
