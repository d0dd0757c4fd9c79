"""Commands about datasets' versions."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.support.cli import Headrace, Services

from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.ingestion.v1 import quality_pb2 as quality
from headrace.api.ingestion.v1 import versions_pb2 as versions
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.cli.profiles import blocks
from headrace.errors import AlreadyExists, FailedPrecondition
from headrace.rpc.convert import to_timestamp

HASH = "ab" * 32


def version(number: int, **fields: object) -> ingestion.DatasetVersion:
    return ingestion.DatasetVersion(
        dataset="small",
        version=number,
        row_count=100 * number,
        content_hash=HASH,
        create_time=to_timestamp(datetime(2026, 1, 2, tzinfo=UTC)),
        **fields,  # type: ignore[arg-type]
    )


def number_field(mean: float, **fields: object) -> versions.FieldProfile:
    numbers = versions.NumberProfile(
        min=0,
        max=10,
        mean=mean,
        deviation=2.5,
        quantiles=[versions.Quantile(rank=0.5, value=4)],
        histogram=[0.1, 0.8, 0.0, 0.1],
    )
    return versions.FieldProfile(
        name="radius",
        type=ingestion.FIELD_TYPE_FLOAT32,
        count=90,
        null_count=10,
        numbers=numbers,
        **fields,  # type: ignore[arg-type]
    )


def label_field() -> versions.FieldProfile:
    top = [versions.ValueCount(value="0", count=75), versions.ValueCount(value="1", count=25)]
    return versions.FieldProfile(name="sick", type=ingestion.FIELD_TYPE_INT8, count=100, top_values=top)


def split_counts(by: ingestion.SplitBy.ValueType) -> ingestion.SplitCounts:
    def count(name: str, zeros: int, ones: int, unlabelled: int = 0) -> ingestion.SplitCount:
        classes = [
            ingestion.ClassCount(value="0", row_count=zeros),
            ingestion.ClassCount(value="1", row_count=ones),
        ]
        rows = zeros + ones + unlabelled
        return ingestion.SplitCount(split=name, row_count=rows, unlabelled_count=unlabelled, classes=classes)

    return ingestion.SplitCounts(
        split=ingestion.Split(train=0.7, validation=0.15, test=0.15, by=by),
        counts=[count("train", 60, 40, 40), count("validation", 10, 20), count("test", 30, 0)],
        validation_begin_time=to_timestamp(datetime(2026, 1, 2, tzinfo=UTC)),
    )


def test_versions_are_listed_with_what_they_are(services: Services, headrace: Headrace) -> None:
    services.answers["ListVersions"] = lambda _: ingestion.ListVersionsResponse(
        versions=[
            version(
                2,
                tags=["golden"],
                pinned=True,
                verdict=quality.VERDICT_WARN,
                split_counts=split_counts(ingestion.SPLIT_BY_KEY),
            ),
            version(1, expire_time=to_timestamp(datetime(2027, 1, 2, tzinfo=UTC)), erased_rows=3),
        ]
    )
    result = headrace("dataset", "versions", "small")
    assert result.exit_code == 0, result.output
    heading, newest, oldest = result.stdout.splitlines()
    assert heading.split() == ["version", "rows", "train/val/test", "verdict", "marks", "created"]
    assert newest.split()[:-1] == ["2", "200", "140/30/30", "warn", "golden,", "pinned"]
    assert oldest.split()[:-1] == ["1", "100", "-", "-", "3", "rows", "erased,", "expired"]
    assert headrace("get", "versions", "small").stdout == result.stdout


def schema_version(number: int, *features: ingestion.Field) -> ingestion.DatasetSchema:
    label = ingestion.Field(name="sick", type=ingestion.FIELD_TYPE_INT8, allowed_values=["0", "1"])
    return ingestion.DatasetSchema(
        version=number,
        schema=ingestion.Schema(key="id", features=features, label=label),
        create_time=to_timestamp(datetime(2026, 1, number, tzinfo=UTC)),
    )


def test_the_versions_of_a_schema_are_listed_with_what_changed(
    services: Services, headrace: Headrace
) -> None:
    weight = ingestion.Field(name="weight", type=ingestion.FIELD_TYPE_FLOAT32, min=0)
    height = ingestion.Field(name="height", type=ingestion.FIELD_TYPE_FLOAT64, default_value="1.5")
    wide = ingestion.Field(name="weight", type=ingestion.FIELD_TYPE_FLOAT64)
    known = [
        schema_version(4, height, wide),
        schema_version(3, wide, height),
        schema_version(2, weight, height),
        schema_version(1, weight, ingestion.Field(name="grade", type=ingestion.FIELD_TYPE_INT8)),
    ]
    services.answers["ListSchemas"] = lambda _: ingestion.ListSchemasResponse(schemas=known)
    result = headrace("dataset", "schemas", "small")
    assert result.exit_code == 0, result.output
    heading, *rows = [line.split() for line in result.stdout.splitlines()]
    assert heading == ["version", "fields", "changes", "applied"]
    assert [" ".join(row[:-1]) for row in rows] == [
        "4 4 another order",
        "3 4 weight: type FLOAT32 → FLOAT64, min 0 → -",
        "2 4 added height; removed grade",
        "1 4 -",
    ]
    one = headrace("dataset", "schemas", "small", "2")
    assert [line.split()[:6] for line in one.stdout.splitlines()[1:]] == [
        ["id", "key", "STRING", "-", "-", "-"],
        ["weight", "feature", "FLOAT32", "no", "-", "0"],
        ["height", "feature", "FLOAT64", "no", "1.5", "-"],
        ["sick", "label", "INT8", "no", "-", "-"],
    ]
    assert [
        each["version"] for each in json.loads(headrace("dataset", "schemas", "small", "-o", "json").stdout)
    ] == [4, 3, 2, 1]
    missing = headrace("dataset", "schemas", "small", "7")
    assert missing.exit_code == 3
    assert "`headrace dataset schemas small` lists them" in missing.stderr


def test_a_version_is_cut_on_request(services: Services, headrace: Headrace) -> None:
    services.answers["CommitVersion"] = lambda _: version(3)
    result = headrace("dataset", "cut", "small")
    assert (result.exit_code, result.output) == (0, "version 3 of small has 300 rows\n")
    assert services.requests == [ingestion.CommitVersionRequest(dataset="small")]
    assert json.loads(headrace("dataset", "cut", "small", "-o", "json").stdout)["version"] == 3


def test_a_profile_is_a_table_with_histograms(services: Services, headrace: Headrace) -> None:
    finding = quality.QualityFinding(
        rule="null_share", field="radius", verdict=quality.VERDICT_BLOCK, message="radius: 0.1 have none"
    )
    services.answers["GetDataset"] = lambda _: ingestion.Dataset(name="small", latest_version=3)
    services.answers["GetVersion"] = lambda request: version(
        request.version or 1, tags=["golden"], findings=[finding]
    )
    services.answers["GetProfile"] = lambda _: versions.Profile(
        row_count=100, fields=[number_field(4.5), label_field()]
    )
    result = headrace("dataset", "show", "small")
    assert result.exit_code == 0, result.output
    title, found, _, radius, sick = result.stdout.splitlines()
    assert title.startswith("small version 3  300 rows, abababababab, cut 2026-01-02 00:00:00 UTC  golden")
    assert found == "block null_share  radius: 0.1 have none"
    assert radius.split() == ["radius", "float32", "10.0%", "0", "4", "10", "4.5", "±", "2.5", "▂█", "▂"]
    assert sick.split()[-4:] == ["0", "75%,", "1", "25%"]
    headrace("dataset", "show", "small", "golden")
    assert services.requests[-2] == ingestion.GetVersionRequest(dataset="small", tag="golden")
    document = json.loads(headrace("dataset", "show", "small", "2", "-o", "json").stdout)
    assert document["version"]["version"] == 2
    assert document["profile"]["fields"][0]["numbers"]["mean"] == 4.5


def test_a_versions_splits_are_a_table(services: Services, headrace: Headrace) -> None:
    services.answers["GetProfile"] = lambda _: versions.Profile(row_count=200)
    services.answers["GetVersion"] = lambda _: version(2, split_counts=split_counts(ingestion.SPLIT_BY_TIME))
    result = headrace("dataset", "show", "small", "2")
    assert result.exit_code == 0, result.output
    _, heading, train, validation, test, _ = result.stdout.splitlines()
    assert heading.split() == ["by", "time", "rows", "share", "no", "label", "0", "1", "from", "(UTC)"]
    assert train.split() == ["train", "140", "70.0%", "40", "60", "40", "-"]
    assert validation.split() == ["validation", "30", "15.0%", "0", "10", "20", "2026-01-02", "00:00:00"]
    assert test.split() == ["test", "30", "15.0%", "0", "30", "0", "-"]
    services.answers["GetVersion"] = lambda _: version(2, split_counts=split_counts(ingestion.SPLIT_BY_KEY))
    assert "by key" in headrace("dataset", "show", "small", "2").stdout
    document = json.loads(headrace("dataset", "show", "small", "2", "-o", "json").stdout)
    assert document["version"]["split_counts"]["counts"][0]["classes"][1] == {"value": "1", "row_count": 40}


def test_a_dataset_without_a_version_shows_what_is_missing(services: Services, headrace: Headrace) -> None:
    services.answers["GetDataset"] = lambda _: ingestion.Dataset(name="small")
    result = headrace("dataset", "show", "small")
    assert result.exit_code == 6
    assert "small has no version yet" in result.stderr


def test_two_versions_stand_side_by_side(services: Services, headrace: Headrace) -> None:
    services.answers["DiffVersions"] = lambda _: versions.VersionDiff(
        base=version(1, schema_version=1),
        other=version(2, schema_version=2),
        fields=[
            versions.FieldDiff(
                name="radius",
                base=number_field(4),
                other=number_field(6),
                psi=0.31,
                ks=0.2,
                base_histogram=[0.5, 0.25],
                other_histogram=[0.25, 0.5],
            ),
            versions.FieldDiff(name="sick", base=label_field(), other=label_field(), psi=0),
            versions.FieldDiff(name="site", other=versions.FieldProfile(name="site")),
            versions.FieldDiff(name="old", base=versions.FieldProfile(name="old")),
        ],
    )
    result = headrace("dataset", "diff", "small", "golden", "2")
    assert result.exit_code == 0, result.output
    assert services.requests[0] == versions.DiffVersionsRequest(
        dataset="small", base=versions.VersionName(tag="golden"), other=versions.VersionName(number=2)
    )
    text = result.stdout
    assert "small version 1 → 2  100 → 200 rows, schema 1 → 2" in text
    assert text.index("█▅") < text.index("▅█")
    lines = text.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("radius"))
    assert lines[first].split()[:6] == ["radius", "float32", "10.0%", "4", "2.5", "0.310"]
    assert lines[first + 1].split() == ["6", "▅█"]
    assert "site added" in text
    assert "old removed" in text


def test_a_tag_is_given_and_moved_only_by_force(services: Services, headrace: Headrace) -> None:
    services.answers["TagVersion"] = lambda request: version(2, tags=[request.tag])
    result = headrace("dataset", "tag", "small", "2", "golden", "--force")
    assert result.stdout == "version 2 of small is golden\n"
    assert services.requests[0].force

    def taken(_: object) -> None:
        raise AlreadyExists("TAG_TAKEN", '"golden" is version 1 of small; use force (--force) to move it')

    services.answers["TagVersion"] = taken
    refused = headrace("dataset", "tag", "small", "2", "golden")
    assert refused.exit_code == 6
    assert "--force" in refused.stderr
    services.answers["UntagVersion"] = lambda _: versions.UntagVersionResponse()
    assert "no version of small is golden any more" in headrace("dataset", "untag", "small", "golden").stdout


def test_a_pin_is_set_and_taken_away(services: Services, headrace: Headrace) -> None:
    services.answers["PinVersion"] = lambda _: version(2, pinned=True)
    services.answers["UnpinVersion"] = lambda _: version(2)
    assert headrace("dataset", "pin", "small", "golden").stdout == "version 2 of small is pinned\n"
    assert services.requests[0].version.tag == "golden"
    document = json.loads(headrace("dataset", "unpin", "small", "2", "-o", "json").stdout)
    assert (document["version"], document["pinned"]) == (2, False)


def arrow_stream(*ids: str) -> bytes:
    batch = pa.record_batch({"id": list(ids), "radius": pa.array([1.5, None][: len(ids)], pa.float32())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    stream: bytes = sink.getvalue().to_pybytes()
    return stream


def read_csv(path: Path) -> list[dict[str, object]]:
    with path.open(newline="") as file:
        return [
            {"id": row["id"], "radius": float(row["radius"]) if row["radius"] else None}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("rows.parquet", lambda path: pq.read_table(path).to_pylist()),
        ("rows.csv", read_csv),
        ("rows.jsonl", lambda path: [json.loads(line) for line in path.read_text().splitlines()]),
    ],
)
def test_rows_are_written_in_the_format_that_the_name_says(
    services: Services,
    headrace: Headrace,
    tmp_path: Path,
    name: str,
    read: Callable[[Path], list[dict[str, object]]],
) -> None:
    services.answers["ReadVersion"] = lambda _: [
        versions.ReadVersionResponse(row_count=3, arrow_stream=arrow_stream("a", "b")),
        versions.ReadVersionResponse(row_count=3, arrow_stream=arrow_stream("c")),
    ]
    path = tmp_path / name
    result = headrace("dataset", "export", "small", "golden", "--to", str(path))
    assert result.exit_code == 0, result.output
    assert result.stdout == f"3 rows written to {path}\n"
    assert read(path) == [
        {"id": "a", "radius": 1.5},
        {"id": "b", "radius": None},
        {"id": "c", "radius": 1.5},
    ]
    again = headrace("dataset", "export", "small", "golden", "--to", str(path))
    assert (again.exit_code, "FILE_EXISTS" in again.stderr) == (6, True)
    assert headrace("dataset", "export", "small", "1", "--to", str(path), "--force").exit_code == 0
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_tensors_are_written_as_base64(
    services: Services, headrace: Headrace, tmp_path: Path, name: str
) -> None:
    batch = pa.record_batch({"id": ["a", "b"], "t": pa.array([b"\x00\xff", None], pa.binary())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    answer = versions.ReadVersionResponse(row_count=2, arrow_stream=sink.getvalue().to_pybytes())
    services.answers["ReadVersion"] = lambda _: [answer]
    result = headrace("dataset", "export", "small", "1", "--to", str(tmp_path / name))
    assert result.exit_code == 0, result.output
    first, second = (tmp_path / name).read_text().splitlines()[-2:]
    assert "AP8=" in first
    assert second in ('{"id":"b","t":null}', '"b",')


def test_an_export_that_breaks_off_leaves_the_old_file(
    services: Services, headrace: Headrace, tmp_path: Path
) -> None:
    def breaking(_: object) -> object:
        yield versions.ReadVersionResponse(row_count=3, arrow_stream=arrow_stream("a"))
        raise FailedPrecondition("ROWS_GONE", "the files of version 1 of small were removed")

    services.answers["ReadVersion"] = breaking
    path = tmp_path / "rows.jsonl"
    path.write_text("old")
    result = headrace("dataset", "export", "small", "1", "--to", str(path), "--force")
    assert result.exit_code == 6
    assert "ROWS_GONE" in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    assert path.read_text() == "old"


def test_an_export_to_nowhere_says_why(services: Services, headrace: Headrace, tmp_path: Path) -> None:
    services.answers["ReadVersion"] = lambda _: [
        versions.ReadVersionResponse(row_count=1, arrow_stream=arrow_stream("a"))
    ]
    unknown = headrace("dataset", "export", "small", "1", "--to", str(tmp_path / "rows.xls"))
    assert (unknown.exit_code, "UNKNOWN_FORMAT" in unknown.stderr) == (5, True)
    missing = headrace("dataset", "export", "small", "1", "--to", str(tmp_path / "no" / "rows.csv"))
    assert (missing.exit_code, "FILE_NOT_WRITABLE" in missing.stderr) == (5, True)


@pytest.mark.parametrize(("same", "code"), [(True, 0), (False, 1)])
def test_a_replay_says_whether_the_hash_is_the_same(
    services: Services, headrace: Headrace, same: bool, code: int
) -> None:
    services.answers["ReplayVersion"] = lambda _: [
        versions.ReplayVersionResponse(row_count=10, replayed_count=6),
        versions.ReplayVersionResponse(
            row_count=10,
            replayed_count=10,
            result=versions.ReplayResult(content_hash=HASH, same=same),
        ),
    ]
    result = headrace("dataset", "replay", "small", "1")
    assert result.exit_code == code
    verdict = "the same hash" if same else "another hash"
    assert result.stdout == f"10 of 10 rows replayed: {verdict}, abababababab\n"
    document = json.loads(headrace("dataset", "replay", "small", "1", "-o", "json").stdout)
    assert document["result"]["same"] is same


def test_a_tag_stands_for_a_number_wherever_a_version_is_named(
    services: Services, headrace: Headrace
) -> None:
    services.answers["GetVersion"] = lambda _: version(4, tags=["golden"])
    assert "golden" in headrace("describe", "version", "small/golden").stdout
    services.answers["SubmitJob"] = lambda _: scheduling.Job(id="job-1")
    assert headrace("submit", "small", "--version", "golden").exit_code == 0
    assert services.requests[-1].dataset_version == 4
    assert headrace("submit", "small", "--version", "3").exit_code == 0
    assert services.requests[-1].dataset_version == 3
    assert headrace("describe", "version", "small").exit_code == 5


def test_a_histograms_fullest_bin_is_the_highest() -> None:
    assert blocks([0.5, 0.25, 0.0, 0.01]) == "█▅ ▁"
    assert blocks([1.0]) == "█"
    assert blocks([]) == ""
