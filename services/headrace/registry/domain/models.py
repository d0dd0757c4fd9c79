"""Models and their versions."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from headrace.errors import FailedPrecondition, NotFound
from headrace.model_formats import ModelFormat
from headrace.registry.domain.gates import Gate, GateResult, judge, passed

# The newest promoted version, which is the one that is served; nobody sets it by hand.
CHAMPION = "champion"


class VersionState(enum.StrEnum):
    """A version's life: it is uploaded, then judged once."""

    UPLOADING = "UPLOADING"
    PROMOTED = "PROMOTED"
    REFUSED = "REFUSED"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of a version. `sha256` is hexadecimal, `uri` where it lies in the object store."""

    path: str
    size: int
    sha256: str
    uri: str


@dataclass(frozen=True, slots=True)
class Model:
    """A named line of versions with the gates that each has to pass."""

    name: str
    gates: tuple[Gate, ...]
    create_time: datetime
    update_time: datetime
    aliases: Mapping[str, int] = field(default_factory=dict)
    latest_version: int = 0


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model.

    `lineage` and `signature` are serialised messages: nothing here decides on them.
    """

    model: str
    number: int
    state: VersionState
    metrics: Mapping[str, float]
    lineage: bytes
    signature: bytes
    traceparent: str
    create_time: datetime
    close_time: datetime | None = None
    artifacts: tuple[Artifact, ...] = ()
    gate_results: tuple[GateResult, ...] = ()
    format: ModelFormat = ModelFormat.ONNX


def closed(version: Version, model: Model, required: tuple[str, ...], now: datetime) -> Version:
    """The version judged against its model's gates: promoted or refused.

    Raises FailedPrecondition/ARTIFACT_MISSING where a required artifact, or the model file itself, was not
    uploaded.
    """
    assert version.state is VersionState.UPLOADING, "a version is judged once"
    missing = {*required, version.format.file} - {artifact.path for artifact in version.artifacts}
    if missing:
        raise FailedPrecondition(
            "ARTIFACT_MISSING",
            f"version {version.number} of {version.model} has no artifact {', '.join(sorted(missing))}; "
            "upload it before committing",
        )
    results = judge(model.gates, version.metrics)
    state = VersionState.PROMOTED if passed(results) else VersionState.REFUSED
    return replace(version, state=state, gate_results=results, close_time=now)


def moves_champion(version: Version, model: Model) -> bool:
    """Whether a verdict moves the champion: forward only, so a version judged late displaces no newer one."""
    return version.state is VersionState.PROMOTED and version.number > model.aliases.get(CHAMPION, 0)


def stored_artifact(version: Version, artifact: Artifact) -> Artifact | None:
    """The artifact with these bytes at this path if the version has it; else the version must be open.

    Raises FailedPrecondition/VERSION_CLOSED where a closed version would change.
    """
    for known in version.artifacts:
        if known.path == artifact.path and known.sha256 == artifact.sha256:
            return known
    if version.state is not VersionState.UPLOADING:
        raise FailedPrecondition(
            "VERSION_CLOSED",
            f"version {version.number} of {version.model} is {version.state}; its artifacts no longer change",
        )
    return None


def check_alias(alias: str) -> None:
    """Raises FailedPrecondition/ALIAS_RESERVED for an alias that promotions move."""
    if alias == CHAMPION:
        raise FailedPrecondition(
            "ALIAS_RESERVED", f"the alias {CHAMPION} follows promotions and cannot be set by hand"
        )


def check_nameable(version: Version) -> None:
    """Raises FailedPrecondition/VERSION_OPEN for a version that still changes."""
    if version.state is VersionState.UPLOADING:
        raise FailedPrecondition(
            "VERSION_OPEN",
            f"version {version.number} of {version.model} is still uploaded to; commit it before naming it",
        )


def number_at(model: Model, alias: str) -> int:
    """The number of the version that an alias points at. Raises NotFound/ALIAS_NOT_FOUND."""
    try:
        return model.aliases[alias]
    except KeyError:
        known = ", ".join(sorted(model.aliases)) or "none"
        raise NotFound(
            "ALIAS_NOT_FOUND", f"model {model.name!r} has no alias {alias!r}; it has: {known}"
        ) from None
