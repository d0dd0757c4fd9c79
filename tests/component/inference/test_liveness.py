"""Which versions' processes have died, as one Triton's words and silences tell."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.inference.triton import liveness
from headrace.inference.triton.liveness import TRIAL, Liveness

MODEL = "m"
LIVES, DIED = "the model failed: as it was told", "Stub process 'm_0_0' is not healthy."


@dataclass
class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Has one version, which fails with some words or answers; counts as Triton does."""

    words: str = LIVES
    succeeded: int = 0
    failed: int = 0
    trials: list[service_pb2.ModelInferRequest] = field(default_factory=list)

    async def ModelStatistics(self, request: object, context: object) -> service_pb2.ModelStatisticsResponse:
        answer = service_pb2.ModelStatisticsResponse()
        stats = answer.model_stats.add(name=MODEL, version="7").inference_stats
        stats.success.count, stats.fail.count = self.succeeded, self.failed
        return answer

    async def ModelMetadata(self, request: object, context: object) -> service_pb2.ModelMetadataResponse:
        answer = service_pb2.ModelMetadataResponse(name=MODEL)
        answer.inputs.add(name="features", datatype="FP32", shape=[-1, 3])
        answer.inputs.add(name="texts", datatype="BYTES", shape=[-1, 2])
        return answer

    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: Any
    ) -> service_pb2.ModelInferResponse:
        self.trials.append(request)
        if self.words:
            await context.abort(grpc.StatusCode.INTERNAL, self.words)
        return service_pb2.ModelInferResponse()


@pytest.fixture
def triton() -> Triton:
    return Triton()


@pytest.fixture
async def known(triton: Triton, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Liveness]:
    # At each question.
    monkeypatch.setattr(liveness, "LOOK_SECONDS", 0.0)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield Liveness(service_pb2_grpc.GRPCInferenceServiceStub(opened))
    await server.stop(None)


async def test_a_version_that_answers_is_not_tried(triton: Triton, known: Liveness) -> None:
    assert await known.died() == frozenset()
    triton.failed, triton.succeeded = 5, 1
    assert await known.died() == frozenset()
    assert triton.trials == []


async def test_one_that_fails_is_tried_with_zeros_and_lives_if_triton_says_no_more(
    triton: Triton, known: Liveness
) -> None:
    for words in (LIVES, ""):
        triton.words = words
        triton.failed += 1
        assert await known.died() == frozenset()
    for trial in triton.trials:
        assert [list(tensor.shape) for tensor in trial.inputs] == [[1, 3], [1, 2]]
        assert list(trial.raw_input_contents) == [bytes(12), bytes(8)]
        assert trial.parameters[TRIAL].bool_param
    assert len(triton.trials) == 2


async def test_one_that_died_stays_so_until_it_is_loaded_anew(triton: Triton, known: Liveness) -> None:
    triton.words, triton.failed = DIED, 1
    assert await known.died() == {(MODEL, 7)}
    # Nobody calls it any more.
    assert await known.died() == {(MODEL, 7)}
    known.loaded_anew("another")
    assert await known.died() == {(MODEL, 7)}
    known.loaded_anew(MODEL)
    assert await known.died() == frozenset()
