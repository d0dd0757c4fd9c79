"""The processes that explain: what they refuse, their bounds, and that one that fails is replaced."""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch as pytorch
from onnx import TensorProto, helper
from tests.support.explaining import MakeExplaining, workers
from tests.support.models import classifier
from tests.support.torch_models import program, scores_program
from tests.support.waiting import eventually
from torch import nn

from headrace.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
)
from headrace.inference.domain.explanations import Method
from headrace.model_formats import ModelFormat
from headrace.rpc import deadline

ROOT = Path(__file__).parents[3]
both_formats = pytest.mark.parametrize("form", [ModelFormat.TORCHSCRIPT, ModelFormat.TORCH_EXPORT])
BUSY = (ResourceExhausted, "EXPLAINER_BUSY")


def slow_model(size: int) -> bytes:
    """Takes its time, and memory, for every row: a product of matrices of that size."""
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 1])
    nodes = [
        helper.make_node("ReduceSum", ["features", "last"], ["sums"], keepdims=1),
        helper.make_node("Unsqueeze", ["sums", "last"], ["cubes"]),
        helper.make_node("Expand", ["cubes", "shape"], ["wide"]),
        helper.make_node("MatMul", ["wide", "wide"], ["squares"]),
        helper.make_node("ReduceMean", ["squares"], ["means"], axes=[1], keepdims=0),
        helper.make_node("ReduceMean", ["means"], ["probabilities"], axes=[1], keepdims=1),
    ]
    constants = [
        helper.make_tensor("last", TensorProto.INT64, [1], [1]),
        helper.make_tensor("shape", TensorProto.INT64, [3], [1, size, size]),
    ]
    graph = helper.make_graph(nodes, "slow", [features], [probabilities], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def jumping_model() -> bytes:
    """The largest whole number below the sum."""
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 3])
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 1])
    nodes = [
        helper.make_node("ReduceSum", ["features", "last"], ["sums"], keepdims=1),
        helper.make_node("Floor", ["sums"], ["probabilities"]),
    ]
    constants = [helper.make_tensor("last", TensorProto.INT64, [1], [1])]
    graph = helper.make_graph(nodes, "jumping", [features], [probabilities], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


async def test_a_process_is_in_nobodys_way_and_is_asked_again(
    make_explaining: MakeExplaining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_POSTGRES_DSN", "postgresql://user:secret@db/headrace")
    explaining = await make_explaining()
    version = await explaining.version(1, classifier(3.0))
    first, second = [await explaining.explain(version) for _ in range(2)]
    assert first[0].attributions.amounts.tolist() == second[0].attributions.amounts.tolist()
    [process] = workers()
    assert process.nice() == 19
    assert not [name for name in process.environ() if name.startswith("HEADRACE_")]


def libraries(process: psutil.Process) -> set[str]:
    """Which of the two runtimes a process has."""
    paths = {mapped.path for mapped in process.memory_maps(grouped=True)}
    return {name for name in ("onnxruntime", "torch") if any(f"/{name}/" in path for path in paths)}


@both_formats
async def test_a_program_of_pytorchs_has_a_process_of_its_own_within_the_same_bounds(
    form: ModelFormat, make_explaining: MakeExplaining, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_POSTGRES_DSN", "postgresql://user:secret@db/headrace")
    explaining = await make_explaining(explain_memory_bytes=300 << 20)
    onnx = await explaining.version(1, classifier(3.0))
    torch = await explaining.version(2, scores_program(form), form=form)
    await explaining.explain(onnx)
    [process] = workers()
    assert libraries(process) == {"onnxruntime"}
    for _ in range(2):
        [row] = await explaining.explain(torch)
        assert row.method is Method.INTEGRATED_GRADIENTS
        assert row.attributions.amounts == pytest.approx([2, 1, -1])
    # One at a time: the other one has gone.
    [process] = workers()
    assert libraries(process) == {"torch"}
    assert process.nice() == 19
    # PyTorch has threads for GPUs that have nothing to do.
    assert len([thread for thread in process.threads() if thread.user_time > 0.1]) == 1
    environment = process.environ()
    assert not [name for name in environment if name.startswith("HEADRACE_")]
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    soft, hard = process.rlimit(psutil.RLIMIT_DATA)
    # What PyTorch takes by itself, and not much more.
    assert soft == hard
    assert 300 << 20 < soft < 2 << 30
    await explaining.explain(onnx)
    [process] = workers()
    assert libraries(process) == {"onnxruntime"}


async def test_each_of_several_processes_keeps_its_runtime(make_explaining: MakeExplaining) -> None:
    explaining = await make_explaining(explain_processes=2)
    form = ModelFormat.TORCHSCRIPT
    onnx = await explaining.version(1, classifier(3.0))
    torch = await explaining.version(2, scores_program(form), form=form)
    for version in (onnx, torch, onnx, torch):
        await explaining.explain(version)
    assert sorted(map(libraries, workers()), key=str) == [{"onnxruntime"}, {"torch"}]
    # Two of a kind take the place of the other.
    await asyncio.gather(explaining.explain(torch), explaining.explain(torch))
    assert list(map(libraries, workers())) == [{"torch"}] * 2


class Large(nn.Module):
    """Takes 16 MiB for every row."""

    def forward(self, features: pytorch.Tensor) -> pytorch.Tensor:
        wide = features.sum(dim=1).reshape(-1, 1, 1).expand(-1, 2048, 2048)
        return wide.contiguous().mean(dim=[1, 2]).unsqueeze(1)


@both_formats
async def test_memory_and_time_of_a_program_of_pytorchs_are_bounded(
    form: ModelFormat, make_explaining: MakeExplaining
) -> None:
    explaining = await make_explaining(explain_memory_bytes=256 << 20)
    large = await explaining.version(1, program(Large(), form, columns=3), outputs=1, form=form)
    sampling = Method.SHAPLEY_SAMPLING
    # Eight orders and their reverses are 32 rows; what needs less is answered.
    assert await explaining.refused(large, method=sampling) == (ResourceExhausted, "EXPLAINER_OUT_OF_MEMORY")
    quick = await explaining.version(2, scores_program(form), form=form)
    await explaining.explain(quick)
    [process] = workers()
    process.suspend()
    with deadline.bounded(1.0):
        assert await explaining.refused(quick) == (DeadlineExceeded, "EXPLANATION_TOO_SLOW")
    assert workers() == []


async def test_a_process_that_starts_goes_on_where_its_caller_leaves(make_explaining: MakeExplaining) -> None:
    explaining = await make_explaining()
    form = ModelFormat.TORCHSCRIPT
    version = await explaining.version(1, scores_program(form), form=form)
    # PyTorch takes longer than that.
    with deadline.bounded(0.3):
        assert await explaining.refused(version) == (DeadlineExceeded, "EXPLANATION_TOO_SLOW")
    [process] = workers()
    await explaining.explain(version)
    assert workers() == [process]


class Talks(nn.Module):
    """Says what it was asked, wherever it can."""

    def forward(self, features: pytorch.Tensor) -> pytorch.Tensor:
        print(f"asked {features}")
        warnings.warn(f"asked {features}", stacklevel=2)
        return features


async def test_what_a_model_prints_is_in_no_log(
    make_explaining: MakeExplaining, capfd: pytest.CaptureFixture[str]
) -> None:
    explaining = await make_explaining()
    form = ModelFormat.TORCHSCRIPT
    talks = program(Talks(), form, columns=3, scripted=True)
    version = await explaining.version(1, talks, outputs=3, form=form)
    [row] = await explaining.explain(version, (12345, 1, -1), method=Method.SHAPLEY_SAMPLING)
    assert row.attributions.amounts == pytest.approx([12345, 0, 0])
    said = capfd.readouterr()
    assert "asked" not in said.out + said.err
    assert "12345" not in said.out + said.err


async def test_pytorch_comes_from_a_folder_and_is_missed_by_its_setting(
    make_explaining: MakeExplaining, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An environment that has what the process needs, and no PyTorch.
    monkeypatch.setattr(sys, "executable", str(ROOT / ".venv-triton" / "bin" / "python"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'services'}:{ROOT / 'libs'}")
    missing, found = await make_explaining(), await make_explaining(torch_path=sysconfig.get_path("purelib"))
    form = ModelFormat.TORCH_EXPORT
    version = await missing.version(2, scores_program(form), form=form)
    with pytest.raises(FailedPrecondition, match="HEADRACE_INFERENCE_TORCH_PATH tells") as caught:
        await missing.explain(version)
    assert caught.value.reason == "PYTORCH_MISSING"
    assert len(await found.explain(version)) == 1


async def test_what_cannot_be_explained_is_refused_with_a_reason(make_explaining: MakeExplaining) -> None:
    explaining = await make_explaining()
    good = await explaining.version(1, classifier(3.0))
    no_model = await explaining.version(2, b"no model")
    another = await explaining.version(3, classifier(3.0), digest="0" * 64)
    gone = await explaining.version(4, classifier(4.0))
    await explaining.store.delete("4.onnx")
    jumping = await explaining.version(5, jumping_model(), outputs=1)
    gradients = Method.INTEGRATED_GRADIENTS
    assert [
        await explaining.refused(good, evaluations=5),
        await explaining.refused(jumping, method=gradients),
        # This model answers a missing value with what is no number.
        await explaining.refused(good, (np.nan, 1, 1)),
        await explaining.refused(no_model),
        await explaining.refused(another),
        await explaining.refused(gone),
    ] == [
        (InvalidArgument, "TOO_FEW_EVALUATIONS"),
        (FailedPrecondition, "METHOD_NOT_APPLICABLE"),
        (FailedPrecondition, "MODEL_FAILED"),
        (FailedPrecondition, "MODEL_FAILED"),
        (DataLoss, "MODEL_FILE_MISMATCH"),
        (FailedPrecondition, "MODEL_FILE_MISSING"),
    ]
    # None of it has cost a process.
    [process] = workers()
    await explaining.explain(good)
    assert workers() == [process]


async def test_time_memory_and_the_queue_are_bounded(make_explaining: MakeExplaining) -> None:
    explaining = await make_explaining(explain_waiting=1, explain_memory_bytes=400 << 20)
    large = await explaining.version(1, slow_model(1024), outputs=1)
    calls = [asyncio.create_task(explaining.refused(large)) for _ in range(3)]
    done, others = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    assert [await call for call in done] == [BUSY]
    # Whoever goes away makes room.
    for call in others:
        call.cancel()
    await asyncio.wait(others)
    assert await explaining.refused(large) == (ResourceExhausted, "EXPLAINER_OUT_OF_MEMORY")
    # Few rows at a time would fit, and take longer than that.
    with deadline.bounded(0.3):
        refused = await explaining.refused(large, method=Method.SHAPLEY_SAMPLING)
    assert refused == (DeadlineExceeded, "EXPLANATION_TOO_SLOW")


@pytest.mark.kill
async def test_a_process_that_dies_is_replaced(make_explaining: MakeExplaining) -> None:
    explaining = await make_explaining()
    quick = await explaining.version(1, classifier(3.0))
    slow = await explaining.version(2, slow_model(1024), outputs=1)
    await explaining.explain(quick)
    [process] = workers()
    before = process.cpu_times().user
    call = asyncio.create_task(explaining.refused(slow))

    async def worked() -> float:
        return process.cpu_times().user - before

    await eventually(worked, lambda seconds: seconds > 0)
    process.kill()
    assert await call == (Internal, "EXPLAINER_DIED")
    assert len(await explaining.explain(quick)) == 1


async def test_a_process_that_hangs_is_replaced(make_explaining: MakeExplaining) -> None:
    explaining = await make_explaining()
    version = await explaining.version(1, classifier(3.0))
    await explaining.explain(version)
    [process] = workers()
    process.suspend()
    with deadline.bounded(1.0):
        assert await explaining.refused(version) == (DeadlineExceeded, "EXPLANATION_TOO_SLOW")
    assert workers() == []
    assert len(await explaining.explain(version)) == 1
