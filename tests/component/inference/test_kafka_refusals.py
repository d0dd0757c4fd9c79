"""What Envoy refuses of requests over Kafka: what they wait for, and what ends them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.component.inference.test_front import MODEL, SECONDS, Fronts
from tests.component.inference.test_front import make_front as make_front
from tests.support.front import ModelServer, front, request, wiring
from tritonclient.grpc import service_pb2

from headrace.inference.data_plane_calls import DataPlaneClient, data_plane_client
from headrace.inference.domain.requests import Cause
from headrace.inference.use_cases.request_ports import CallFailed
from headrace.inference.xds.rate_limits import OVER_KAFKA
from headrace.rpc.options import MAX_MESSAGE_BYTES

LIMIT = 1 << 17
FRAME_BYTES = 5


async def failure(client: DataPlaneClient, message: bytes) -> CallFailed | None:
    """How a call fails; None for one that is answered."""
    try:
        await client.infer(message, seconds=SECONDS, traceparent="")
    except CallFailed as failed:
        return failed
    return None


def of_size(size: int) -> bytes:
    """A message of so many bytes."""
    message = request(MODEL, id="r1")
    del message.raw_input_contents[:]
    message.raw_input_contents.append(bytes(size - message.ByteSize() - 4))
    data: bytes = message.SerializeToString()
    assert len(data) == size
    return data


async def test_what_is_too_large_is_told_so_and_never_waits(make_front: Fronts) -> None:
    made, [server] = await make_front(max_request_bytes=LIMIT)
    most = LIMIT - FRAME_BYTES
    async with data_plane_client(made.address) as client:
        # Envoy counts the frame, and the version that the stamp appends.
        assert await failure(client, of_size(most - 64)) is None
        for size in (most, most + 1, LIMIT, LIMIT + 1):
            failed = await failure(client, of_size(size))
            assert failed is not None
            assert (failed.code, failed.cause) == ("RESOURCE_EXHAUSTED", Cause.REQUEST)
            assert failed.reason == "REQUEST_TOO_LARGE"
    assert len(server.asked) == 1


class Generous(ModelServer):
    """Answers more than gRPC's clients take where nobody tells them to."""

    async def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: object
    ) -> service_pb2.ModelInferResponse:
        return service_pb2.ModelInferResponse(raw_output_contents=[bytes(MAX_MESSAGE_BYTES + 1)])


async def test_an_answer_of_any_size_comes_through(tmp_path: Path) -> None:
    server = Generous()
    await server.start()
    try:
        async with (
            front(tmp_path, wiring([server]), {MODEL: {3: 100}}) as made,
            data_plane_client(made.address) as client,
        ):
            message = request(MODEL).SerializeToString()
            answer = await client.infer(message, seconds=SECONDS, traceparent="")
    finally:
        await server.stop()
    assert len(answer) > MAX_MESSAGE_BYTES


async def test_requests_over_kafka_are_no_client_and_count_for_their_model(make_front: Fronts) -> None:
    message = request(MODEL).SerializeToString()

    async def refusals(client: DataPlaneClient) -> int:
        failures = await asyncio.gather(*(failure(client, message) for _ in range(50)))
        return sum(failed is not None for failed in failures)

    made, _ = await make_front(client_rate=5)
    async with data_plane_client(made.address, client=OVER_KAFKA) as over_kafka:
        assert await refusals(over_kafka) == 0
    # As behind a load balancer, which appends its client's address to what that one said of itself.
    async with data_plane_client(made.address, client=f"{OVER_KAFKA}, 192.0.2.7") as other:
        assert await refusals(other)


async def test_a_models_limit_holds_over_kafka(make_front: Fronts) -> None:
    made, _ = await make_front(client_rate=5, model_rate=10)
    async with data_plane_client(made.address, client=OVER_KAFKA) as client:
        message = request(MODEL).SerializeToString()
        failures = await asyncio.gather(*(failure(client, message) for _ in range(50)))
    assert {failed.cause for failed in failures if failed is not None} == {Cause.BUSY}


@pytest.mark.parametrize("limit", ["client_rate", "model_rate"])
async def test_what_is_too_much_waits(make_front: Fronts, limit: str) -> None:
    made, _ = await make_front(**{limit: 5})
    async with data_plane_client(made.address) as client:
        message = request(MODEL).SerializeToString()
        failures = await asyncio.gather(*(failure(client, message) for _ in range(50)))
    told = {(failed.code, failed.cause) for failed in failures if failed is not None}
    assert told == {("RESOURCE_EXHAUSTED", Cause.BUSY)}
