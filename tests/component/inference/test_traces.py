"""One trace: a promotion's through its rollout; a call's through Envoy and Triton to the prediction."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator

import numpy as np
import pytest
import tritonclient.grpc.aio as triton
from tests.component.inference.conftest import MakePlane, Plane
from tests.support.otlp import CollectedSpan, Collector, collecting
from tests.support.otlp_http import collecting_http
from tests.support.waiting import eventually

from headrace.api.scheduling.v1 import scheduling_pb2

pytestmark = pytest.mark.broker

PROCESS = "process headrace.inference.predictions.v1"


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    async with collecting() as collector:
        yield collector


@pytest.fixture
async def traced(make_plane: MakePlane, collector: Collector) -> AsyncIterator[Plane]:
    async with collecting_http(collector) as url:
        yield await make_plane(trace_url=url, HEADRACE_OTLP_ENDPOINT=collector.endpoint)


async def spans_of(collector: Collector, trace_id: str, *names: str) -> dict[str, CollectedSpan]:
    """Wait until the trace has spans of all these names."""

    async def spans() -> dict[str, CollectedSpan]:
        return {span.name: span for span in collector.spans if span.trace_id == trace_id}

    return await eventually(spans, lambda found: set(names) <= set(found))


async def predict(plane: Plane, name: str, request_id: str, traceparent: str) -> None:
    async with plane.client() as client:
        tensor = triton.InferInput("features", [1, 3], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 3), dtype=np.float32))
        await client.infer(
            name, [tensor], request_id=request_id, headers={"traceparent": traceparent}, client_timeout=10
        )


async def test_a_calls_trace_goes_through_envoy_and_triton_to_the_stored_prediction(
    traced: Plane, collector: Collector, name: str
) -> None:
    await traced.deploy(name)
    promoted = uuid.uuid4().hex
    await traced.promote(name, 1, traceparent=f"00-{promoted}-{'b' * 16}-01")
    await traced.until_live(name, 1)

    rolled_out = await spans_of(collector, promoted, "roll out version", "load version", "shift traffic")
    assert rolled_out["roll out version"].parent_id == "b" * 16
    assert rolled_out["load version"].parent_id == rolled_out["roll out version"].span_id
    assert rolled_out["shift traffic"].parent_id == rolled_out["roll out version"].span_id

    called = uuid.uuid4().hex
    await predict(traced, name, "traced", f"00-{called}-{'c' * 16}-01")
    infer = f"infer {name}"
    spans = await spans_of(collector, called, "ingress", infer, PROCESS)
    assert [spans[span].service for span in ("ingress", infer, PROCESS)] == [
        "envoy",
        "triton",
        "headrace-inference",
    ]
    assert spans["ingress"].parent_id == "c" * 16
    assert spans[infer].parent_id == spans["ingress"].span_id
    assert spans[PROCESS].parent_id == spans[infer].span_id


async def test_what_the_caller_does_not_sample_leaves_no_spans(
    traced: Plane, collector: Collector, name: str
) -> None:
    await traced.deploy(name)
    await traced.promote(name, 1)
    await traced.until_live(name, 1)
    quiet, loud = uuid.uuid4().hex, uuid.uuid4().hex
    await predict(traced, name, "quiet", f"00-{quiet}-{'c' * 16}-00")
    await predict(traced, name, "loud", f"00-{loud}-{'c' * 16}-01")
    # The one that came later has arrived everywhere.
    await spans_of(collector, loud, "ingress", f"infer {name}", PROCESS)
    assert [span for span in collector.spans if span.trace_id == quiet] == []


async def test_a_collector_that_is_away_loses_no_prediction(make_plane: MakePlane, name: str) -> None:
    plane = await make_plane(
        trace_url="http://127.0.0.1:9/v1/traces", HEADRACE_OTLP_ENDPOINT="http://127.0.0.1:9"
    )
    await plane.deploy(name)
    await plane.promote(name, 1)
    await plane.until_live(name, 1)
    for number in range(20):
        await predict(plane, name, f"request-{number}", f"00-{uuid.uuid4().hex}-{'c' * 16}-01")
    await plane.until_logged(name, {f"request-{number}" for number in range(20)})


async def test_a_call_that_is_not_logged_is_traced(traced: Plane, collector: Collector, name: str) -> None:
    await traced.deploy(name, log=scheduling_pb2.PredictionLogSpec(share=0))
    await traced.promote(name, 1)
    await traced.until_live(name, 1)
    called = uuid.uuid4().hex
    await predict(traced, name, "unlogged", f"00-{called}-{'c' * 16}-01")
    infer = f"infer {name}"
    spans = await spans_of(collector, called, "ingress", infer)
    assert spans[infer].parent_id == spans["ingress"].span_id
