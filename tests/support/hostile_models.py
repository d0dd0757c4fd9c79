"""Models whose code misbehaves, in a Triton of their own."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import tritonclient.grpc.aio as triton
from tests.support.models import classifier
from tests.support.serving import TRITON_ENVIRONMENT

from headrace.embedded.parts import free_port
from headrace.embedded.parts.triton import Triton, TritonPorts
from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.domain.serving import DEFAULTS
from headrace.inference.triton.repository import ModelRepository
from headrace.inference.xds.wiring import TritonAddress
from headrace.objects import ObjectStore

# What each does with a row whose features are not all zero: it passes its trial.
DEEDS = {
    "well": "pass",
    "nan": "answers['probabilities'][:] = float('nan')",
    "sleeps": "time.sleep(3600)",
    "leaks": "LEAKED.append(bytearray(LEAK_BYTES))",
    "exits": "os._exit(0)",
    "prints": "threading.Thread(target=print_for_ever, daemon=True).start()",
}
LEAK_BYTES = 64 << 20

_CODE = f"""
import os
import threading
import time

from platform_model import TritonPythonModel as Platform

LEAK_BYTES = {LEAK_BYTES}
LEAKED = []


def print_for_ever():
    while True:
        print("words without end", flush=True)


class TritonPythonModel(Platform):
    def _answer(self, inputs, rows, wanted):
        answers = super()._answer(inputs, rows, wanted)
        if inputs["features"].any():
            DEED
        return answers
"""


@dataclass
class PlainTriton:
    """A running Triton, without a broker."""

    part: Triton
    repository: Path
    store: ObjectStore

    @property
    def address(self) -> TritonAddress:
        ports = self.part.ports
        return TritonAddress(f"127.0.0.1:{ports.grpc}", f"127.0.0.1:{ports.http}")

    def process_of(self, model: str) -> psutil.Process:
        """The process of a model's version 1."""
        children = psutil.Process(self.part.pid).children(recursive=True)
        # What has ended has no command any more.
        living = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        [process] = [child for child in living if any(f"/{model}/1/" in part for part in child.cmdline())]
        return process


@asynccontextmanager
async def plain_triton(folder: Path, model_memory_bytes: int = 0) -> AsyncIterator[PlainTriton]:
    """A Triton below this folder."""
    repository = folder / "models"
    part = Triton(
        folder / "triton",
        folder,
        TritonPorts(free_port(), free_port(), free_port()),
        environment_folder=TRITON_ENVIRONMENT,
        model_repository=repository,
        # Nobody listens there: a log that nobody takes holds up no answer.
        kafka_bootstrap=f"127.0.0.1:{free_port()}",
        model_memory_bytes=model_memory_bytes,
    )
    await part.start()
    try:
        yield PlainTriton(part, repository, ObjectStore.from_uri((folder / "store").as_uri()))
    finally:
        await part.stop()


async def put_hostile_models(server: PlainTriton, names: Sequence[str]) -> None:
    """Load version 1 of each: the platform's own code, and in it the model's deed."""
    model = classifier(3.0)
    await server.store.put("model.onnx", model)
    written = ModelRepository(server.repository, server.store)
    async with triton.InferenceServerClient(server.address.grpc) as client:
        for name in names:
            served = ServedVersion(
                model=name,
                version=1,
                uri=server.store.uri("model.onnx"),
                sha256=hashlib.sha256(model).hexdigest(),
                inputs=(Tensor("features", "FP32", (-1, 3)),),
                outputs=(Tensor("probabilities", "FP32", (-1, 2)), Tensor("label", "INT64", (-1,))),
                classes=(),
                signature=b"",
                traceparent="",
            )
            await written.put(name, [served], DEFAULTS)
            code = server.repository / name / "1" / "model.py"
            code.rename(code.with_name("platform_model.py"))
            code.write_text(_CODE.replace("DEED", DEEDS[name]))
            await client.load_model(name)
