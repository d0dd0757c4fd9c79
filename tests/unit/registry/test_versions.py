from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from headrace.errors import FailedPrecondition, NotFound
from headrace.model_formats import ModelFormat
from headrace.registry.domain.gates import Gate
from headrace.registry.domain.models import (
    CHAMPION,
    Artifact,
    Model,
    Version,
    VersionState,
    check_alias,
    check_nameable,
    closed,
    moves_champion,
    number_at,
    stored_artifact,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ONNX = Artifact("model.onnx", 3, "a" * 64, "file:///store/model.onnx")


def model(aliases: Mapping[str, int] | None = None) -> Model:
    return Model("m", (Gate("accuracy", "test", min=0.9),), NOW, NOW, aliases or {})


def version(number: int = 1, accuracy: float = 0.95) -> Version:
    return Version(
        model="m",
        number=number,
        state=VersionState.UPLOADING,
        metrics={"test/accuracy": accuracy},
        lineage=b"",
        signature=b"",
        traceparent="",
        create_time=NOW,
        artifacts=(ONNX,),
    )


@pytest.mark.parametrize(("accuracy", "state"), [(0.9, VersionState.PROMOTED), (0.89, VersionState.REFUSED)])
def test_closing_judges_and_keeps_the_verdict(accuracy: float, state: VersionState) -> None:
    judged = closed(version(accuracy=accuracy), model(), ("model.onnx",), NOW)
    assert judged.state is state
    assert judged.close_time == NOW
    assert [result.passed for result in judged.gate_results] == [state is VersionState.PROMOTED]


def test_closing_names_every_artifact_that_is_missing() -> None:
    with pytest.raises(FailedPrecondition, match=r"has no artifact a\.txt, b\.txt") as missing:
        closed(version(), model(), ("b.txt", "model.onnx", "a.txt"), NOW)
    assert missing.value.reason == "ARTIFACT_MISSING"


def test_closing_asks_for_the_file_of_the_versions_format() -> None:
    with pytest.raises(FailedPrecondition, match=r"has no artifact model\.pt;") as missing:
        closed(replace(version(), format=ModelFormat.TORCHSCRIPT), model(), (), NOW)
    assert missing.value.reason == "ARTIFACT_MISSING"


def test_the_champion_moves_forward_only() -> None:
    promoted = closed(version(number=2), model(), (), NOW)
    refused = closed(version(number=2, accuracy=0.1), model(), (), NOW)
    assert moves_champion(promoted, model())
    assert moves_champion(promoted, model({CHAMPION: 1}))
    assert not moves_champion(promoted, model({CHAMPION: 3}))
    assert not moves_champion(refused, model({CHAMPION: 1}))


def test_a_closed_version_takes_the_same_bytes_and_no_others() -> None:
    judged = closed(version(), model(), (), NOW)
    assert stored_artifact(judged, replace(ONNX, uri="")) == ONNX
    with pytest.raises(FailedPrecondition) as changed:
        stored_artifact(judged, replace(ONNX, sha256="b" * 64))
    assert changed.value.reason == "VERSION_CLOSED"
    assert stored_artifact(version(), replace(ONNX, sha256="b" * 64)) is None


def test_an_alias_names_a_closed_version_and_never_the_champion() -> None:
    with pytest.raises(FailedPrecondition) as reserved:
        check_alias(CHAMPION)
    assert reserved.value.reason == "ALIAS_RESERVED"
    check_alias("candidate")
    with pytest.raises(FailedPrecondition) as still_open:
        check_nameable(version())
    assert still_open.value.reason == "VERSION_OPEN"
    check_nameable(closed(version(accuracy=0.1), model(), (), NOW))


def test_an_unknown_alias_is_told_with_those_that_exist() -> None:
    assert number_at(model({"champion": 2}), "champion") == 2
    with pytest.raises(NotFound, match="it has: candidate, champion") as unknown:
        number_at(model({"champion": 2, "candidate": 1}), "chempion")
    assert unknown.value.reason == "ALIAS_NOT_FOUND"
