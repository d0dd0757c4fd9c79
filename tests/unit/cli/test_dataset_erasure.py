"""Commands about erasures, and what is shown of events that are kept encrypted."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tests.support.cli import Headrace, Services

from headrace.api.ingestion.v1 import erasure_pb2 as erasures
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.registry.v1 import registry_pb2 as registry

REQUESTED = erasures.Erasure(id="e1", dataset="small", state=erasures.ERASURE_STATE_REQUESTED)
DONE = erasures.Erasure(
    id="e1",
    dataset="small",
    state=erasures.ERASURE_STATE_DONE,
    row_count=3,
    rejected_count=2,
    prediction_count=4,
    versions=[1, 2],
)


def trained(model: str, version: int, dataset: str, dataset_version: int) -> registry.ModelVersion:
    source = ingestion.DatasetVersion(dataset=dataset, version=dataset_version)
    return registry.ModelVersion(
        model=model, version=version, lineage=registry.Lineage(dataset_version=source)
    )


@pytest.fixture
def erasing(services: Services) -> Services:
    """Answers an erasure that is done at the third look, and two models over two pages."""
    looks = iter([REQUESTED, DONE])
    services.answers["EraseSubject"] = lambda _: REQUESTED
    services.answers["GetErasure"] = lambda _: next(looks)
    services.answers["ListErasures"] = lambda _: erasures.ListErasuresResponse(erasures=[DONE])
    services.answers["ListModels"] = lambda request: (
        registry.ListModelsResponse(models=[registry.Model(name="two")])
        if request.page_token
        else registry.ListModelsResponse(models=[registry.Model(name="one")], next_page_token="more")
    )
    versions = {
        ("one", ""): ([trained("one", 9, "small", 2)], "more"),
        ("one", "more"): ([trained("one", 8, "small", 3), trained("one", 7, "small", 1)], ""),
        ("two", ""): ([trained("two", 1, "other", 1)], ""),
    }

    def list_versions(request: registry.ListModelVersionsRequest) -> registry.ListModelVersionsResponse:
        found, token = versions[request.model, request.page_token]
        return registry.ListModelVersionsResponse(versions=found, next_page_token=token)

    services.answers["ListModelVersions"] = list_versions
    return services


def test_an_erasure_is_followed_and_names_the_models_of_what_held_it(
    headrace: Headrace, erasing: Services
) -> None:
    result = headrace("dataset", "erase", "small", "--key", "p1", "--yes")
    assert result.exit_code == 0, result.output
    assert "3 rows erased, 2 rejected events, and 4 logged predictions" in result.output
    assert "versions of small that held it: 1, 2" in result.output
    assert "model versions trained on them: one/9, one/7" in result.output
    assert "p1" not in result.output
    assert erasing.requests[0] == erasures.EraseSubjectRequest(dataset="small", key="p1")


def test_an_erasure_is_a_document_too(headrace: Headrace, erasing: Services) -> None:
    result = headrace("dataset", "erase", "small", "--key", "p1", "--yes", "-o", "json")
    document = json.loads(result.stdout)
    assert document["model_versions"] == ["one/9", "one/7"]
    assert document["erasure"]["versions"] == [1, 2]


def test_nothing_is_erased_before_somebody_says_so(headrace: Headrace, erasing: Services) -> None:
    result = headrace("dataset", "erase", "small", "--key", "p1")
    assert result.exit_code == 1
    assert not erasing.requests


def test_erasures_are_listed(headrace: Headrace, erasing: Services) -> None:
    result = headrace("dataset", "erasures", "small")
    assert result.exit_code == 0
    assert "e1" in result.output
    assert "1, 2" in result.output


def sealed(request: ingestion.GetRejectedRequest) -> ingestion.RejectedSample:
    if request.reveal:
        return ingestion.RejectedSample(id=5, payload=b"clear text", key=b"k")
    return ingestion.RejectedSample(id=5, payload=b"\x01\x02", sealed_by="k1")


@pytest.mark.parametrize(
    ("options", "shown", "hidden"),
    [((), "add --reveal to see them", "0000  01 02"), (("--reveal",), "clear text", "add --reveal")],
)
def test_an_encrypted_event_is_shown_on_request_alone(
    headrace: Headrace, services: Services, options: tuple[str, ...], shown: str, hidden: str
) -> None:
    answer: Callable[[ingestion.GetRejectedRequest], ingestion.RejectedSample] = sealed
    services.answers["GetRejected"] = answer
    result = headrace("rejected", "show", "5", *options)
    assert result.exit_code == 0, result.output
    assert shown in result.output
    assert hidden not in result.output
