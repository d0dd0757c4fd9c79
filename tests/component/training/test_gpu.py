"""Runs on a GPU, where CUDA is present: the same results, the same guarantees."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from tests.support.runs import Runs, measured_accuracy, stop_after

from headrace.training.capacity import count_gpus
from headrace.training.run.errors import Interrupted
from headrace.training.run.specification import IN_MEMORY_BYTES, RunSpec

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA is not present")


def on_gpu(spec: RunSpec, in_memory_bytes: int) -> RunSpec:
    return spec.model_copy(update={"gpu": 1, "in_memory_bytes": in_memory_bytes})


@pytest.mark.parametrize("in_memory_bytes", [0, IN_MEMORY_BYTES])
def test_a_run_learns_on_a_gpu_and_its_model_answers_without_one(runs: Runs, in_memory_bytes: int) -> None:
    spec = on_gpu(runs.spec("job", epochs=60), in_memory_bytes)
    report = runs.run(spec)
    assert report.device == "cuda"
    assert report.metrics["test/accuracy"] > 0.93
    data = load_breast_cancer()
    _, labels = runs.answers(spec, data.data.astype(np.float32))
    assert np.mean(labels == 1 - data.target) == pytest.approx(measured_accuracy(report))


@pytest.mark.parametrize("in_memory_bytes", [0, IN_MEMORY_BYTES])
def test_an_interrupted_run_on_a_gpu_ends_with_the_same_bits(runs: Runs, in_memory_bytes: int) -> None:
    whole = on_gpu(runs.spec("whole", batch_size=32), in_memory_bytes)
    expected = runs.run(whole)
    parted = on_gpu(runs.spec("parted", batch_size=32), in_memory_bytes)
    with pytest.raises(Interrupted):
        runs.run(parted, stop_after(3))
    found = runs.run(parted)
    assert found.losses == expected.losses
    assert runs.weights(parted) == runs.weights(whole)


def test_a_run_goes_on_without_the_gpu_that_it_began_on(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = on_gpu(runs.spec("job"), IN_MEMORY_BYTES)
    with pytest.raises(Interrupted):
        runs.run(spec, stop_after(4))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    report = runs.run(spec)
    assert (report.resumed_epoch, report.device) == (4, "cpu")


def test_a_node_offers_the_gpus_that_pytorch_sees() -> None:
    subprocess.run(["nvidia-smi"], check=True, capture_output=True)
    assert count_gpus() == torch.cuda.device_count()
