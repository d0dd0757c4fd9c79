"""Linear regression on a running stack: one feature, one target, next to ordinary least squares.

Usage: python examples/linear-regression/run.py [--data FOLDER]   (start a stack with `headrace up` first)
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import tritonclient.grpc as triton
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes

from headrace import splits
from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.api.training.v1 import training_pb2 as training
from headrace.client import HeadraceClient, pipeline_file
from headrace.errors import HeadraceError
from headrace.splits import Shares

NAME = "linear-regression"
PIPELINE = Path(__file__).with_name("pipeline.yaml")
DEADLINE_SECONDS = 180.0


def patients() -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Keys, body-mass indices and progressions of 442 patients; scikit-learn ships them."""
    data = load_diabetes(scaled=False)
    bmi = data.data[:, data.feature_names.index("bmi")]
    return [f"patient-{index:03}" for index in range(len(bmi))], bmi, data.target


def least_squares(keys: list[str], x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Ordinary least squares' mean squared error on the platform's own test split, normalised as there."""
    chosen = splits.assign(pa.array(keys), Shares(train=0.8, validation=0.0, test=0.2))
    train, test = chosen == splits.SPLITS.index("train"), chosen == splits.SPLITS.index("test")
    x = (x - x[train].mean()) / x[train].std()
    y = (y - y[train].mean()) / y[train].std()
    slope, intercept = np.polyfit(x[train], y[train], deg=1)
    return float(np.mean((slope * x[test] + intercept - y[test]) ** 2))


async def train(client: HeadraceClient) -> registry.ModelVersion:
    """Apply, publish, train; the registered version."""
    keys, bmi, progression = patients()
    await client.scheduling.ApplyPipeline(pipeline_file.load(PIPELINE))
    before = {job.id for job in await jobs(client)}
    if not before:
        rows = [
            {"patient_id": key, "bmi": float(x), "progression": float(y)}
            for key, x, y in zip(keys, bmi, progression, strict=True)
        ]
        print(f"{await client.produce(NAME, rows)} samples published")
        while not (started := [job for job in await jobs(client) if job.id not in before]):
            await asyncio.sleep(0.1)
        job_id = started[0].id
    else:
        # The samples are there from an earlier run: train on them again.
        request = scheduling.SubmitJobRequest(pipeline=NAME, request_id=str(uuid.uuid4()))
        job_id = (await client.scheduling.SubmitJob(request)).id
    async for job in client.scheduling.WatchJob(scheduling.WatchJobRequest(id=job_id)):
        state = job.state
    if state != scheduling.JOB_STATE_SUCCEEDED:
        raise SystemExit(f"job {job_id} did not succeed: {job.message}")
    async for answer in client.training.StreamLogs(training.StreamLogsRequest(id=f"{job_id}-{job.attempt}")):
        for line in answer.lines:
            print(f"  {line}")
    return await client.registry.GetModelVersion(
        registry.GetModelVersionRequest(model=NAME, version=job.model_version)
    )


async def jobs(client: HeadraceClient) -> list[scheduling.Job]:
    """The pipeline's jobs, newest first."""
    return list((await client.scheduling.ListJobs(scheduling.ListJobsRequest(pipeline=NAME))).jobs)


async def deployed(client: HeadraceClient, version: int) -> None:
    """Wait until the version has all traffic."""
    request = inference.WatchDeploymentRequest(name=NAME)
    async for deployment in client.inference.WatchDeployment(request):
        if deployment.ready and [t.version for t in deployment.traffic] == [version]:
            return


def predict(address: str, bmi: list[float]) -> NDArray[np.float32]:
    """Ask the deployed model with a stock client: raw indices in, progressions out."""
    rows = np.array(bmi, dtype=np.float32)[:, None]
    tensor = triton.InferInput("features", rows.shape, "FP32")
    tensor.set_data_from_numpy(rows)
    with triton.InferenceServerClient(address) as client:
        answer: NDArray[np.float32] = client.infer(NAME, [tensor]).as_numpy("prediction")
    return answer[:, 0]


async def run(data: Path) -> None:
    """The whole example."""
    async with HeadraceClient.from_environment(data) as client, asyncio.timeout(DEADLINE_SECONDS):
        version = await train(client)
        keys, bmi, progression = patients()
        mse = version.metrics["test/mse_normalised"]
        print(f"test MSE of the network     {mse:.4f}")
        print(f"test MSE of least squares   {least_squares(keys, bmi, progression):.4f}  (both normalised)")
        await deployed(client, version.version)
        indices = [20.0, 26.0, 32.0, 38.0]
        answers = await asyncio.to_thread(predict, client.targets.address("inference_protocol"), indices)
        for index, answer in zip(indices, answers, strict=True):
            print(f"bmi {index:.0f}: progression {answer:.0f}")


def main() -> int:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(os.environ.get("HEADRACE_DATA", ".headrace"))
    parser.add_argument("--data", type=Path, default=default, help="the stack's data folder")
    try:
        asyncio.run(run(parser.parse_args().data))
    except HeadraceError as error:
        print(f"{error} [{error.reason}]", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
