"""Which models were trained on a dataset, and how long the rows stay."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from tests.support.cli import Headrace, Services

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.client.lineage import Kept, Stay, stay
from headrace.rpc.convert import to_duration, to_timestamp

CUT = datetime(2026, 1, 2, tzinfo=UTC)
WENT = datetime(2026, 12, 30, tzinfo=UTC)
AGE = timedelta(days=90)
NEWEST = 5


def version(number: int, **fields: object) -> ingestion.DatasetVersion:
    return ingestion.DatasetVersion(
        dataset="small",
        version=number,
        create_time=to_timestamp(CUT),
        **fields,  # type: ignore[arg-type]
    )


def trained(number: int, dataset: str, dataset_version: int) -> registry.ModelVersion:
    source = ingestion.DatasetVersion(dataset=dataset, version=dataset_version)
    return registry.ModelVersion(
        model="scans", version=number, lineage=registry.Lineage(dataset_version=source)
    )


@pytest.mark.parametrize(
    ("found", "age", "expected"),
    [
        (version(1), AGE, Stay(Kept.FOR_A_TIME, CUT + AGE)),
        (version(1), None, Stay(Kept.FOR_EVER)),
        (version(NEWEST), AGE, Stay(Kept.NEWEST)),
        (version(1, pinned=True), AGE, Stay(Kept.PINNED)),
        (version(1, tags=["golden"]), AGE, Stay(Kept.TAGGED)),
        (version(1, expire_time=to_timestamp(WENT)), AGE, Stay(Kept.FORGOTTEN, WENT)),
        # Retention that is no longer declared brings nothing back.
        (version(1, expire_time=to_timestamp(WENT)), None, Stay(Kept.FORGOTTEN, WENT)),
    ],
)
def test_rows_stay_as_long_as_retention_and_pins_say(
    found: ingestion.DatasetVersion, age: timedelta | None, expected: Stay
) -> None:
    assert stay(found, NEWEST, age) == expected


@pytest.fixture
def scans(services: Services) -> Services:
    """Four model versions: the champion, one that still has traffic, one that nobody uses, and another's."""
    services.answers["GetDataset"] = lambda _: ingestion.Dataset(
        name="small", latest_version=NEWEST, retention=ingestion.Retention(versions=to_duration(AGE))
    )
    pages = {
        "": ([version(5), version(4), version(3, pinned=True)], "more"),
        "more": ([version(2), version(1, expire_time=to_timestamp(WENT))], ""),
    }

    def list_versions(request: ingestion.ListVersionsRequest) -> ingestion.ListVersionsResponse:
        found, token = pages[request.page_token]
        return ingestion.ListVersionsResponse(versions=found, next_page_token=token)

    services.answers["ListVersions"] = list_versions
    services.answers["ListModels"] = lambda _: registry.ListModelsResponse(
        models=[registry.Model(name="scans", aliases={"champion": 9})]
    )
    services.answers["ListModelVersions"] = lambda _: registry.ListModelVersionsResponse(
        versions=[
            trained(9, "small", 2),
            trained(8, "small", 1),
            trained(7, "small", 3),
            trained(6, "other", 1),
        ]
    )
    services.answers["ListDeployments"] = lambda _: inference.ListDeploymentsResponse(
        deployments=[
            inference.Deployment(
                name="ward",
                model="scans",
                traffic=[
                    inference.VersionTraffic(version=8, weight=100),
                    inference.VersionTraffic(version=7, weight=0),
                ],
            )
        ]
    )
    return services


def test_models_are_listed_with_what_becomes_of_their_rows(headrace: Headrace, scans: Services) -> None:
    result = headrace("dataset", "lineage", "small")
    assert result.exit_code == 0, result.output
    heading, *rows, warning = result.stdout.splitlines()
    assert heading.split() == ["model", "version", "aliases", "deployments", "dataset", "version", "rows"]
    assert [row.split() for row in rows] == [
        ["scans", "9", "champion", "-", "2", "until", "2026-04-02"],
        ["scans", "8", "-", "ward", "1", "forgotten", "2026-12-30"],
        ["scans", "7", "-", "-", "3", "pinned"],
    ]
    assert "(dataset version 2)" in warning
    assert "headrace dataset pin small VERSION" in warning


def test_those_that_nobody_uses_are_left_out_where_live_ones_are_asked_for(
    headrace: Headrace, scans: Services
) -> None:
    document = json.loads(headrace("dataset", "lineage", "small", "--live", "-o", "json").stdout)
    assert [entry["version"] for entry in document] == [9, 8]
    assert document[0]["rows_time"] == "2026-04-02T00:00:00+00:00"
    assert document[1]["deployments"] == ["ward"]


def test_nothing_is_said_where_nothing_goes(headrace: Headrace, scans: Services) -> None:
    scans.answers["GetDataset"] = lambda _: ingestion.Dataset(name="small", latest_version=NEWEST)
    result = headrace("dataset", "lineage", "small")
    assert "for ever" in result.stdout
    assert "will go" not in result.stdout
