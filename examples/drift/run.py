"""A scanner is replaced, and its images come out larger: the platform notices, trains, canaries and recovers.

Usage: python examples/drift/run.py [--data FOLDER]   (start a stack with `headrace up` first)

Patients are those of Wisconsin Diagnostic Breast Cancer, in an endless random order. The model is asked about
each of them, and what the biopsy says follows as a sample. Nobody but the platform does anything about it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer

from headrace.api.inference.v1 import drift_pb2 as drift
from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.scheduling.v1 import drift_pb2 as retraining
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.client import HeadraceClient, pipeline_file
from headrace.errors import HeadraceError

PIPELINE: Final = Path(__file__).with_name("pipeline.yaml")
DEADLINE_SECONDS: Final = 300.0
POLL_SECONDS: Final = 0.5
# What the first version is trained on.
BEFORE: Final = 400
# Biopsies are told of so many at a time.
BATCH: Final = 20
# Accuracy is that of the last so many answers.
REMEMBERED: Final = 200
# The new scanner's images: lengths come out 15 % longer, and areas by the square of it.
LARGER: Final = 1.15

T = TypeVar("T")


class Clinic:
    """Patients one after the other, an old scanner and a new one."""

    def __init__(self, client: HeadraceClient, name: str) -> None:
        data = load_breast_cancer()
        self._client = client
        self._name = name
        self._names = [text.replace(" ", "_") for text in data.feature_names[:10]]
        self._measured: NDArray[np.float64] = data.data[:, :10]
        # The data set calls benign 1.
        self._malignant = data.target == 0
        self._draw = np.random.default_rng(7)
        self._right: deque[bool] = deque(maxlen=REMEMBERED)
        self.new_scanner = False
        self.versions: set[str] = set()

    @property
    def accuracy(self) -> float:
        """Of the last answers."""
        return float(np.mean(self._right))

    def forget(self) -> None:
        """Begin to count anew."""
        self._right.clear()
        self.versions.clear()

    async def biopsies(self, count: int) -> None:
        """Publish samples of so many patients."""
        await self._publish([self._patient() for _ in range(count)])

    async def work(self) -> None:
        """Ask about patients, and tell what the biopsies of the new scanner's said, until cancelled."""
        found: list[tuple[NDArray[np.float64], bool]] = []
        while True:
            row, malignant = self._patient()
            answer = await self._client.predict(self._name, row[None].tolist())
            self._right.append(int(answer.outputs["label"].item()) == malignant)
            self.versions.add(answer.version)
            if self.new_scanner:
                found.append((row, malignant))
            if len(found) >= BATCH:
                await self._publish(found)
                found.clear()

    def _patient(self) -> tuple[NDArray[np.float64], bool]:
        place = self._draw.integers(len(self._measured))
        row = self._measured[place].copy()
        if self.new_scanner:
            # Radius, perimeter, area.
            row[[0, 2, 3]] *= [LARGER, LARGER, LARGER**2]
        return row, bool(self._malignant[place])

    async def _publish(self, patients: list[tuple[NDArray[np.float64], bool]]) -> None:
        await self._client.produce(
            self._name,
            [
                {
                    "visit": str(uuid.uuid4()),
                    **dict(zip(self._names, row.tolist(), strict=True)),
                    "malignant": int(malignant),
                }
                for row, malignant in patients
            ],
        )


async def until(ask: Callable[[], Awaitable[T]], enough: Callable[[T], bool]) -> T:
    """Ask again and again until the answer is enough; the example's own deadline bounds it."""
    while not enough(answer := await ask()):
        await asyncio.sleep(POLL_SECONDS)
    return answer


@asynccontextmanager
async def working(clinic: Clinic) -> AsyncIterator[None]:
    """The clinic works meanwhile; what keeps it from working is raised."""
    async with asyncio.TaskGroup() as group:
        work = group.create_task(clinic.work())
        yield
        work.cancel()


async def train_first(client: HeadraceClient, clinic: Clinic, name: str) -> None:
    """Apply the pipeline, and train on what the old scanner told."""
    request = pipeline_file.load(PIPELINE)
    # Of its own, so that it may be run again.
    request.name = request.spec.deployment.name = name
    await client.scheduling.ApplyPipeline(request)
    await clinic.biopsies(BEFORE)

    async def version() -> int:
        try:
            cut = ingestion.CommitVersionRequest(dataset=name)
            return (await client.ingestion.CommitVersion(cut)).row_count
        except HeadraceError as error:
            if error.reason != "DATASET_EMPTY":
                raise
            return 0

    await until(version, lambda rows: rows == BEFORE)
    await client.scheduling.SubmitJob(scheduling.SubmitJobRequest(pipeline=name))


async def story(client: HeadraceClient) -> None:
    """All of it."""
    name = f"{pipeline_file.load(PIPELINE).name}-{uuid.uuid4().hex[:6]}"
    clinic = Clinic(client, name)

    async def deployment() -> inference.Deployment:
        return await client.inference.GetDeployment(inference.GetDeploymentRequest(name=name))

    async def standing() -> drift.Drift:
        return await client.drift.GetDrift(drift.GetDriftRequest(deployment=name))

    async def pipeline() -> scheduling.Pipeline:
        return await client.scheduling.GetPipeline(scheduling.GetPipelineRequest(name=name))

    def live(version: int) -> Callable[[inference.Deployment], bool]:
        def is_live(found: inference.Deployment) -> bool:
            return found.ready and [(t.version, t.weight) for t in found.traffic] == [(version, 100)]

        return is_live

    await train_first(client, clinic, name)
    await until(deployment, live(1))
    print(f"{name}: version 1 answers, trained on {BEFORE} patients of the old scanner")
    async with working(clinic):
        await until(standing, lambda found: found.state == drift.DRIFT_STATE_CALM)
        print(f"no drift, {clinic.accuracy:.0%} of its answers are right")

        clinic.new_scanner = True
        clinic.forget()
        print(f"the scanner is replaced: lengths come out {LARGER - 1:.0%} longer")
        found = await until(standing, lambda found: found.state == drift.DRIFT_STATE_DRIFTING)
        print(f"drift in {', '.join(found.episodes[0].columns)}; {clinic.accuracy:.0%} are right")
        asked = await until(
            pipeline,
            lambda found: [one.state for one in found.retrainings] == [retraining.RETRAINING_STATE_STARTED],
        )
        print(asked.retrainings[0].message)
        begun = await until(deployment, lambda found: found.rollout.to_version == 2)
        print(f"version 2 passed its gates and is rolled out, first to {begun.rollout_spec.steps[0]} %")
        await until(deployment, live(2))
        clinic.forget()
        found = await until(
            standing, lambda found: (found.model_version, found.state) == (2, drift.DRIFT_STATE_CALM)
        )
        ended = drift.DriftEndReason.Name(found.episodes[0].end_reason).removeprefix("DRIFT_END_REASON_")
        print(f"the episode is over, {ended.lower()}: version {', '.join(clinic.versions)} answers")
        print(f"no drift, {clinic.accuracy:.0%} of its answers are right")


async def run(data: Path) -> None:
    """The example, within its deadline."""
    async with HeadraceClient.from_environment(data) as client, asyncio.timeout(DEADLINE_SECONDS):
        await story(client)


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
