"""Files against a running service: checked without being stored, and imported once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.ingestion import Ingestion, Process, Running
from tests.support.waiting import eventually
from typer.testing import CliRunner, Result

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.cli.main import app
from headrace.client import HeadraceClient
from headrace.errors import HeadraceError, InvalidArgument, NotFound, Unavailable

pytestmark = pytest.mark.broker

ROWS = 7
Headrace = Callable[..., "asyncio.Future[Result]"]


def csv_of(prefix: str, rows: int = ROWS) -> str:
    """Rows of which the fourth lacks its radius and the fifth is of no class."""
    lines = [
        f"{prefix}{number},{'' if number == 4 else number / 2},{number},{3 if number == 5 else number % 2}"
        for number in range(1, rows + 1)
    ]
    return "\n".join(["id,radius,grade,malignant", *lines])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text(csv_of("p"))
    return path


def headrace_of(ingestion: Ingestion, process: Process, data: Path) -> Headrace:
    environment = {
        "HEADRACE_DATA": str(data),
        "HEADRACE_INGESTION_TARGET": process.target,
        "HEADRACE_KAFKA_BOOTSTRAP": ingestion.bootstrap,
        "HEADRACE_KAFKA_IDEMPOTENCE": "false",
    }

    def command(*arguments: str) -> asyncio.Future[Result]:
        return asyncio.ensure_future(asyncio.to_thread(CliRunner().invoke, app, arguments, env=environment))

    return command


async def test_a_files_faults_are_named_and_nothing_is_stored(
    shared_ingestion: Running, file: Path, tmp_path: Path
) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    headrace = headrace_of(ingestion, process, tmp_path)
    shown = await headrace("dataset", "validate", str(file), "--dataset", ingestion.dataset)
    assert shown.exit_code == 1, shown.output
    assert shown.stdout.splitlines()[-1] == "5 of 7 rows are valid"
    listed = await headrace("dataset", "validate", str(file), "--dataset", ingestion.dataset, "-o", "json")
    assert json.loads(listed.stdout) == {
        "valid": 5,
        "invalid": 2,
        "faults": [
            {
                "field": "radius",
                "rule": "required",
                "reason": "SCHEMA_VIOLATION",
                "count": 1,
                "rows": [4],
                "message": '"radius" is missing, and is not nullable',
            },
            {
                "field": "malignant",
                "rule": "allowed_values",
                "reason": "SCHEMA_VIOLATION",
                "count": 1,
                "rows": [5],
                "message": '"malignant" is 3; allowed are 0, 1',
            },
        ],
    }
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text(
        "apiVersion: headrace.dev/v1\nkind: Pipeline\nmetadata: {name: a}\nspec:\n"
        "  dataset:\n    key: id\n    features: {radius: {type: float32, default: 0}, grade: int8}\n"
        "    label: {name: malignant, type: int8}\n  training: {recipe: mlp}\n"
    )
    valid = await headrace("dataset", "validate", str(file), "-f", str(pipeline))
    assert (valid.exit_code, valid.stdout) == (0, "7 of 7 rows are valid\n")
    both = await headrace("dataset", "validate", str(file), "--dataset", "a", "-f", str(pipeline))
    assert both.exit_code == 2
    assert await ingestion.rows() == []
    async with ingestion.stub(process) as stub:
        dataset = await stub.GetDataset(api.GetDatasetRequest(name=ingestion.dataset))
        assert dataset.rejected_count == 0


@pytest.mark.parametrize(
    ("request_", "kind", "reason"),
    [
        (api.ValidateSamplesRequest(json=[b"{}"]), InvalidArgument, "SCHEMA_MISSING"),
        (api.ValidateSamplesRequest(dataset="nowhere", json=[b"{}"]), NotFound, "DATASET_NOT_FOUND"),
        (
            api.ValidateSamplesRequest(
                schema=api.Schema(
                    key="id",
                    features=[api.Field(name="a", type=api.FIELD_TYPE_BOOL, pattern="a")],
                    label=api.Field(name="y", type=api.FIELD_TYPE_BOOL),
                )
            ),
            InvalidArgument,
            "INVALID_SCHEMA",
        ),
    ],
)
async def test_samples_need_a_schema_that_makes_sense(
    shared_ingestion: Running, request_: api.ValidateSamplesRequest, kind: type[HeadraceError], reason: str
) -> None:
    ingestion, process = shared_ingestion
    async with ingestion.stub(process) as stub:
        with pytest.raises(kind) as caught:
            async for _ in stub.ValidateSamples(iter([request_])):
                pass
    assert caught.value.reason == reason


async def test_samples_are_judged_request_by_request(shared_ingestion: Running) -> None:
    ingestion, process = shared_ingestion
    requests = [
        api.ValidateSamplesRequest(
            schema=ingestion.schema(), json=[b"{", b'{"id":"p","radius":1,"malignant":1}']
        ),
        api.ValidateSamplesRequest(json=[b'{"id":"p","radius":-1,"malignant":1}']),
        api.ValidateSamplesRequest(),
    ]
    async with ingestion.stub(process) as stub:
        answers = [answer async for answer in stub.ValidateSamples(iter(requests))]
    assert [answer.valid_count for answer in answers] == [1, 0, 0]
    found = [[(fault.index, fault.reason, fault.rule) for fault in answer.faults] for answer in answers]
    assert found == [[(0, "MALFORMED_PAYLOAD", "json")], [(0, "SCHEMA_VIOLATION", "min")], []]


async def test_an_import_stores_each_row_once_however_often_it_is_run(
    shared_ingestion: Running, file: Path, tmp_path: Path
) -> None:
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    more = tmp_path / "more.jsonl"
    more.write_text('{"id": "q", "radius": 1, "malignant": 1}\n\n{"id": "r", "radius": 2, "malignant": 0}\n')
    headrace = headrace_of(ingestion, process, tmp_path / "data")
    arguments = ("import", str(file), str(more), "--dataset", ingestion.dataset, "--wait", "-o", "json")
    first = await headrace(*arguments)
    assert first.exit_code == 0, first.output
    told = json.loads(first.stdout)
    assert [told[name] for name in ("files", "published", "stored", "rejected", "unseen")] == [2, 9, 7, 2, 0]
    rows = await ingestion.rows()
    assert sorted(str(row["id"]) for row in rows) == ["p1", "p2", "p3", "p6", "p7", "q", "r"]
    # What was published is noted: nothing is sent again.
    second = json.loads((await headrace(*arguments)).stdout)
    assert (second["published"], second["published_before"]) == (0, 9)
    # Sent from elsewhere all the same, the rows are known by their ids.
    again = await headrace(*arguments[:-2], "--again", "--patience", "3", "-o", "json")
    assert json.loads(again.stdout)["published"] == 9
    await eventually(
        lambda: process.metric("headrace_ingestion_duplicates_total", dataset=ingestion.dataset),
        lambda duplicates: duplicates == 7,
    )
    assert await ingestion.rows() == rows


async def test_an_import_that_was_cut_off_goes_on_where_it_was(
    shared_ingestion: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.client.importing.BATCH", 10)
    ingestion, process = shared_ingestion
    await ingestion.apply(process)
    file = tmp_path / "long.csv"
    file.write_text(csv_of("p", 35))
    headrace = headrace_of(ingestion, process, tmp_path / "data")
    publish, batches = HeadraceClient.publish, 0

    async def breaks_off(self: HeadraceClient, topic: str, keyed: object) -> None:
        nonlocal batches
        batches += 1
        await publish(self, topic, keyed)  # type: ignore[arg-type]
        if batches == 3:
            # The broker has them; the import does not know.
            raise Unavailable("BROKER_UNAVAILABLE", "the connection was lost")

    monkeypatch.setattr(HeadraceClient, "publish", breaks_off)
    arguments = ("import", str(file), "--dataset", ingestion.dataset)
    broken = await headrace(*arguments)
    assert broken.exit_code == 4, broken.output
    resumed = await headrace(*arguments)
    assert resumed.stdout.splitlines()[0] == (
        f"15 rows of 1 file published to {ingestion.dataset}, 20 had been before"
    )
    expected = sorted(f"p{number}" for number in range(1, 36) if number not in (4, 5))
    await eventually(ingestion.rows, lambda rows: sorted(str(row["id"]) for row in rows) == expected)
