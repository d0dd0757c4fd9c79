"""Training runs in the test's own process, on real data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from pydantic import JsonValue
from tests.support.training import KEY, LABEL, features

from headrace.splits import Shares
from headrace.training.run.messages import Pipe
from headrace.training.run.report import MODEL_FILE, Report
from headrace.training.run.specification import Column, Dataset, Label, Preparation, RunSpec
from headrace.training.run.work import work

EPOCHS = 24


@dataclass
class Runs:
    """Runs of one job."""

    folder: Path
    table_uri: str
    store_uri: str

    def spec(
        self, job: str, shares: tuple[float, float, float] = (0.7, 0.15, 0.15), **parameters: JsonValue
    ) -> RunSpec:
        train, validation, test = shares
        return RunSpec(
            run=f"{job}-1",
            job=job,
            attempt=1,
            pipeline="p",
            node="n",
            recipe="mlp",
            parameters={"hidden": [8], "epochs": EPOCHS, **parameters},
            dataset=Dataset(
                name="d",
                version=1,
                table_uri=self.table_uri,
                table_version=0,
                content_hash="",
                key=KEY,
                features=tuple(Column(name=name, type="float32") for name in features()),
                label=Label(name=LABEL, type="int8", classes=("0", "1")),
            ),
            shares=Shares(train=train, validation=validation, test=test),
            preparations=tuple(Preparation(feature=name, normalise="standard") for name in features()),
            normalise_label=False,
            seed=3,
            store_uri=self.store_uri,
        )

    def streamed(self, job: str, **parameters: JsonValue) -> RunSpec:
        """A run that holds none of the table in memory."""
        spec = self.spec(job)
        changes = {"in_memory_bytes": 0, "parameters": {**spec.parameters, **parameters}}
        return spec.model_copy(update=changes)

    def run(self, spec: RunSpec, stopping: Callable[[], bool] = lambda: False) -> Report:
        folder = self.folder / spec.job
        folder.mkdir(exist_ok=True)
        work(spec, folder, Pipe(None), stopping)
        return Report.read(folder)

    def model(self, spec: RunSpec) -> bytes:
        return (self.folder / spec.job / MODEL_FILE).read_bytes()

    def answers(self, spec: RunSpec, rows: NDArray[np.float32]) -> Sequence[NDArray[np.generic]]:
        """What the exported model makes of raw rows, output by output, by ONNX's own evaluator."""
        session = ReferenceEvaluator(onnx.load_from_string(self.model(spec)))
        outputs = session.run(None, {"features": rows})
        assert isinstance(outputs, list)
        return outputs

    def weights(self, spec: RunSpec) -> list[bytes]:
        graph = onnx.load_from_string(self.model(spec)).graph
        return sorted(tensor.raw_data for tensor in graph.initializer)


def stop_after(epochs: int) -> Callable[[], bool]:
    passes = itertools.count(1)
    return lambda: next(passes) >= epochs


def measured_accuracy(report: Report) -> float:
    """Of all rows: the splits' accuracies, weighted by their rows."""
    rows = report.rows
    return sum(report.metrics[f"{name}/accuracy"] * rows[name] for name in rows) / sum(rows.values())
