"""What training data looks like, from the ingestion service (`use_cases.explain_ports.TrainingProfiles`)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from headrace.api.ingestion.v1 import versions_pb2, versions_pb2_grpc
from headrace.errors import DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from headrace.inference.use_cases.explain_ports import TrainingProfiles
from headrace.rpc.client import channel

_MEDIAN = 0.5
# Of a longer text a profile has the beginning and a digest, between them an ellipsis: no model knows it.
_CUT_LENGTH = 64
_CUT_ELLIPSIS = -17


class NoTrainingProfiles:
    """Of an installation without an ingestion service."""

    async def typical(self, dataset: str, version: int) -> Mapping[str, float | str]:
        """Raises FailedPrecondition."""
        raise FailedPrecondition(
            "BASELINE_UNKNOWN",
            "no ingestion service is named in HEADRACE_INFERENCE_INGESTION_TARGET; name another baseline",
        )


class GrpcTrainingProfiles:
    """Asks the ingestion service."""

    def __init__(self, target: str, stub: versions_pb2_grpc.DatasetVersionServiceAsyncStub) -> None:
        self._target = target
        self._stub = stub

    async def typical(self, dataset: str, version: int) -> Mapping[str, float | str]:
        """The median of numbers, the most frequent one of what has few values."""
        name = versions_pb2.VersionName(number=version)
        try:
            profile = await self._stub.GetProfile(
                versions_pb2.GetProfileRequest(dataset=dataset, version=name)
            )
        except (NotFound, FailedPrecondition) as error:
            raise FailedPrecondition("BASELINE_UNKNOWN", f"{error.message}; name another baseline") from error
        except (Unavailable, DeadlineExceeded) as error:
            raise Unavailable(
                "BASELINE_UNAVAILABLE",
                f"the ingestion service at {self._target}, which has the training data's profile, does not "
                f"answer; start it, or name another baseline ({error.message})",
            ) from error
        return {field.name: value for field in profile.fields if (value := typical_value(field)) is not None}


def typical_value(field: versions_pb2.FieldProfile) -> float | str | None:
    """A field's median or most frequent value; None where the profile has neither."""
    values = [value for count in field.top_values if not _is_cut(value := json.loads(count.value))]
    all_shown = sum(count.count for count in field.top_values) == field.count
    if field.HasField("numbers") and not (values and all_shown):
        return next((one.value for one in field.numbers.quantiles if one.rank == _MEDIAN), None)
    match values:
        case [str(value), *_]:
            return value
        case [int(value) | float(value), *_]:
            return float(value)
        case _:
            return None


def _is_cut(value: object) -> bool:
    return isinstance(value, str) and len(value) == _CUT_LENGTH and value[_CUT_ELLIPSIS] == "…"


@asynccontextmanager
async def training_profiles(target: str) -> AsyncIterator[TrainingProfiles]:
    """Those of the service at host:port, empty for none; it is connected to when it is first asked."""
    if not target:
        yield NoTrainingProfiles()
        return
    async with channel(target) as opened:
        yield GrpcTrainingProfiles(target, versions_pb2_grpc.DatasetVersionServiceStub(opened))
