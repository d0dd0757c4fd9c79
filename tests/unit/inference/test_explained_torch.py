"""What the process that explains finds of PyTorch's programs, in both of their formats."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.support.explaining import a_task
from tests.support.torch_models import program
from torch import Tensor, nn
from torch.nn import functional

from headrace.inference.explainer import worker
from headrace.inference.explainer.frames import Reply, Task
from headrace.inference.explainer.models import ModelFailed
from headrace.inference.explainer.torch_graph import Nature
from headrace.inference.explainer.torch_model import TorchModel
from headrace.model_formats import ModelFormat

SCRIPT, EXPORT = ModelFormat.TORCHSCRIPT, ModelFormat.TORCH_EXPORT
ROW, BASELINE = [1.0, -2.0, 0.5], [0.2, 0.1, -0.3]
GRADIENTS, DIFFERENCES, JUMPS = Nature(True, True), Nature(True, False), Nature(False, False)


class Bends(nn.Module):
    """A weighted sum of bent sums, which is integrated on paper."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(3)
        self.inner = nn.Parameter(torch.tensor(random.normal(size=(3, 5)), dtype=torch.float32))
        self.outer = nn.Parameter(torch.tensor(random.normal(size=(5, 1)), dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        return torch.tanh(features @ self.inner) @ self.outer

    def integrated(self, row: Sequence[float], baseline: Sequence[float]) -> list[float]:
        """Of tanh(w x) along the line is w d (tanh(w x) - tanh(w b)) / (w d)."""
        inner, outer = self.inner.detach().double().numpy(), self.outer.detach().double().numpy()[:, 0]
        distance = np.array(row) - np.array(baseline)
        rise = (np.tanh(row @ inner) - np.tanh(baseline @ inner)) / (distance @ inner)
        return list(distance * (inner @ (rise * outer)))


class Network(nn.Module):
    """What classifiers are made of: layers, with what they do in training alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 2)
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.softmax(self.layers(features), dim=-1)


class Does(nn.Module):
    """One thing that a program may do with its features."""

    def __init__(self, does: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.does = does

    def forward(self, features: Tensor) -> Any:
        return self.does(features)


class Counts(nn.Module):
    """Collects its features in a list, one behind the other."""

    def forward(self, features: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for place in range(3):
            # As a list that is made at once it would be no loop.
            parts.append(features[:, place : place + 1])  # noqa: PERF401
        if features.dim() > 2:
            raise ValueError("no matrix")
        return torch.cat(parts, dim=1)


class LooksAway(nn.Module):
    """Without gradients in one of its parts."""

    def forward(self, features: Tensor) -> Tensor:
        with torch.no_grad():
            still = torch.sin(features[:, :2]).sum(dim=1, keepdim=True)
        return still + torch.cos(features[:, 2:])


class SwitchesOff(nn.Module):
    """Without gradients in one of its parts, whose distance is nothing where both features move alike."""

    def forward(self, features: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        still = features[:, :1] - features[:, 1:2]
        torch.set_grad_enabled(True)
        return still + features.sum(dim=1, keepdim=True)


class ChangesItsMind(nn.Module):
    """Decides by what it has written to a list."""

    def forward(self, features: Tensor) -> Tensor:
        rounds = [False]
        rounds[0] = True
        return torch.round(features) if rounds[0] else features


def floor_in_place(features: Tensor) -> Tensor:
    return features.floor_()


class RoundsBeside(nn.Module):
    """Rounds in place, in a task that is not part of its own graph."""

    def forward(self, features: Tensor) -> Tensor:
        own = features * 1
        torch.jit.wait(torch.jit.fork(floor_in_place, own))
        return own


def a_file(folder: Path, module: nn.Module, form: ModelFormat, **wish: Any) -> Path:
    file = folder / form.file
    file.write_bytes(program(module.eval(), form, columns=3, **wish))
    return file


def asked(file: Path, form: ModelFormat, **changes: Any) -> Task:
    return a_task(file, [ROW], BASELINE, **{"format": form, "place": 0, **changes})


def explained(task: Task) -> Reply:
    return worker.explained(TorchModel.load(task), task)


def nature(file: Path, form: ModelFormat, **changes: Any) -> Nature:
    return TorchModel.load(asked(file, form, **changes)).nature


both = pytest.mark.parametrize("form", [SCRIPT, EXPORT])


@both
def test_gradients_integrate_to_what_they_do_on_paper(form: ModelFormat, tmp_path: Path) -> None:
    module = Bends()
    [found] = explained(asked(a_file(tmp_path, module, form), form)).rows
    right = module.integrated(ROW, BASELINE)
    assert (found.method, found.stop) == ("INTEGRATED_GRADIENTS", "CONVERGED")
    assert found.amounts == pytest.approx(right, abs=0.01 * sum(map(abs, right)))
    assert found.gap == pytest.approx(0, abs=0.01 * sum(map(abs, right)))
    # Steps of three evaluations each, and the two ends: not one for each feature.
    assert found.evaluations == 2 + 3 * (2 * found.samples - 8)


@pytest.mark.parametrize(("form", "scripted"), [(SCRIPT, False), (SCRIPT, True), (EXPORT, False)])
def test_what_layers_do_in_training_alone_is_in_nobodys_way(
    form: ModelFormat, scripted: bool, tmp_path: Path
) -> None:
    file = a_file(tmp_path, Network(), form, scripted=scripted)
    assert nature(file, form) == GRADIENTS
    [found] = explained(asked(file, form)).rows
    assert (found.method, found.stop) == ("INTEGRATED_GRADIENTS", "CONVERGED")
    [right] = explained(asked(file, form, method="SHAPLEY_SAMPLING")).rows
    assert found.answer == right.answer
    assert sum(found.amounts) == pytest.approx(sum(right.amounts), abs=0.01 * sum(map(abs, found.amounts)))


def written_over(features: Tensor) -> Tensor:
    kept = torch.zeros_like(features)
    kept[:, :2] = features[:, :2]
    return torch.floor(kept)


def rounded_in_place(features: Tensor) -> Tensor:
    own = features * 2
    own[:, :1].floor_()
    return own


def without_gradients(features: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.sin(features)


@both
@pytest.mark.parametrize(
    ("does", "right"),
    [
        (lambda x: functional.gelu(x).sum(dim=1, keepdim=True).div(3), GRADIENTS),
        (lambda x: torch.where(torch.isnan(x), torch.zeros_like(x), x) ** 2, GRADIENTS),
        (lambda x: torch.stack([x[:, 0], x[:, 1].clamp(min=0)], dim=1).exp_(), GRADIENTS),
        (lambda x: functional.layer_norm(x, [3]).double(), GRADIENTS),
        (lambda x: torch.cat(x.chunk(3, dim=1)[:2], dim=1).amax(dim=1, keepdim=True), GRADIENTS),
        # The same numbers, and no gradients.
        (lambda x: torch.sin(x.detach()) + x, DIFFERENCES),
        (lambda x: (x > 0).float() * x, JUMPS),
        (lambda x: x.int().float(), JUMPS),
        (lambda x: torch.round(x), JUMPS),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), JUMPS),
        (lambda x: 1 / x, JUMPS),
        (lambda x: x**-1, JUMPS),
        (lambda x: x.sum(dim=1, keepdim=True, dtype=torch.int64).float(), JUMPS),
        (lambda x: x.max(dim=1)[1].float(), JUMPS),
        (lambda x: x[:, x[0].argmax()].unsqueeze(1), JUMPS),
        (lambda x: functional.dropout(x, training=True), JUMPS),
        (lambda x: functional.batch_norm(x, None, None, training=True), JUMPS),
        (lambda x: torch.where(x > 0, x, -x), JUMPS),
        (lambda x: x.sort(dim=1)[0], JUMPS),
        (lambda x: x.to(torch.tensor([1])).float(), JUMPS),
        (lambda x: torch.sinc(x), JUMPS),
        (lambda _: torch.full((2, 1), 3.0), JUMPS),
        # Zero where there is no root, and one and more where there is.
        (lambda x: torch.nan_to_num(torch.sqrt(x) + 1), JUMPS),
        (lambda x: torch.where(torch.isnan(torch.log(x)), torch.zeros_like(x), x), JUMPS),
        (lambda x: torch.sqrt(torch.nan_to_num(x)), GRADIENTS),
        (lambda x: torch.masked_fill(torch.tensor([1, 2, 3]), torch.tensor([True] * 3), x.sum()) + x, JUMPS),
        (written_over, JUMPS),
        (rounded_in_place, JUMPS),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_operator_that_is_not_known_may_jump(
    does: Callable[[Tensor], Any], right: Nature, form: ModelFormat, tmp_path: Path
) -> None:
    # Exported for two rows alone: some of them know no others.
    assert nature(a_file(tmp_path, Does(does), form, rows=2), form) == right


def test_numbers_that_are_read_as_others_jump(tmp_path: Path) -> None:
    # Only torch.export can write it down.
    module = Does(lambda x: x.view(torch.int32).view(torch.float32))
    assert nature(a_file(tmp_path, module, EXPORT), EXPORT) == JUMPS
    module = Does(lambda x: x.view(torch.float16).float())
    assert nature(a_file(tmp_path, module, EXPORT), EXPORT) == JUMPS


def test_numbers_that_are_written_to_integers_jump(tmp_path: Path) -> None:
    def written(features: Tensor) -> Tensor:
        whole = torch.zeros(features.shape, dtype=torch.int64)
        whole.copy_(features)
        return whole.float()

    # With nothing that writes in place: what is written to is the new one's type.
    exported = torch.export.export(Does(written), (torch.zeros(2, 3),)).run_decompositions()
    file = tmp_path / EXPORT.file
    torch.export.save(exported, file)
    assert nature(file, EXPORT) == JUMPS


def test_a_number_of_few_digits_jumps(tmp_path: Path) -> None:
    module = Does(lambda x: x.to(torch.float8_e4m3fn).float())
    assert nature(a_file(tmp_path, module, EXPORT), EXPORT) == JUMPS


@pytest.mark.parametrize(
    ("module", "right"),
    [
        (Counts(), JUMPS),
        (LooksAway(), DIFFERENCES),
        (SwitchesOff(), DIFFERENCES),
        (ChangesItsMind(), JUMPS),
        (RoundsBeside(), JUMPS),
        (Network(), GRADIENTS),
    ],
)
def test_loops_and_contexts_of_a_compiled_program_are_looked_into(
    module: nn.Module, right: Nature, tmp_path: Path
) -> None:
    assert nature(a_file(tmp_path, module, SCRIPT, scripted=True), SCRIPT) == right


def test_a_part_without_gradients_is_found_in_an_exported_program(tmp_path: Path) -> None:
    assert nature(a_file(tmp_path, LooksAway(), EXPORT), EXPORT) == DIFFERENCES
    whole = tmp_path / "whole"
    whole.mkdir()
    with torch.no_grad():
        # Only where the program itself says so has it no gradients.
        file = a_file(whole, Bends(), EXPORT)
    assert nature(file, EXPORT) == GRADIENTS


def sines(file: Path, form: ModelFormat, **changes: Any) -> list[float]:
    """What the features have of sin(a) + sin(b) + cos(c)."""
    [found] = explained(asked(file, form, **changes)).rows
    assert found.method == "INTEGRATED_GRADIENTS"
    right = [np.sin(1.0) - np.sin(0.2), np.sin(-2.0) - np.sin(0.1), np.cos(0.5) - np.cos(-0.3)]
    assert found.amounts == pytest.approx(right, abs=0.03)
    return list(found.amounts)


@pytest.mark.parametrize(("form", "scripted"), [(SCRIPT, False), (SCRIPT, True), (EXPORT, False)])
def test_a_program_without_gradients_is_not_explained_by_zeros(
    form: ModelFormat, scripted: bool, tmp_path: Path
) -> None:
    sines(a_file(tmp_path, LooksAway(), form, scripted=scripted), form)


@pytest.mark.parametrize(
    "does",
    [
        lambda x: torch.sin(x[:, :2]).detach().sum(dim=1, keepdim=True) + torch.cos(x[:, 2:]),
        lambda x: (torch.sin(x[:, :2]).sum(dim=1, keepdim=True) + torch.cos(x[:, 2:])).detach(),
    ],
)
@both
def test_gradients_that_are_lost_without_a_word_are_noticed(
    does: Callable[[Tensor], Any], form: ModelFormat, tmp_path: Path
) -> None:
    task = asked(a_file(tmp_path, Does(does), form), form)
    model = TorchModel.load(task)
    assert model.nature == DIFFERENCES
    # As if its graph had told nothing.
    believed = replace(model, nature=GRADIENTS)
    [found], [right] = worker.explained(believed, task).rows, worker.explained(model, task).rows
    assert found.amounts == right.amounts
    assert found.evaluations > right.evaluations


@both
def test_a_program_that_jumps_is_sampled(form: ModelFormat, tmp_path: Path) -> None:
    file = a_file(tmp_path, Does(lambda x: torch.floor(x).sum(dim=1, keepdim=True)), form)
    [found] = explained(asked(file, form)).rows
    assert found.method == "SHAPLEY_SAMPLING"
    assert found.amounts == pytest.approx([1, -2, 1])
    refused = explained(asked(file, form, method="INTEGRATED_GRADIENTS"))
    assert refused.failure == "METHOD_NOT_APPLICABLE"


class OneOfMany(nn.Module):
    """Answers a row among others otherwise than alone."""

    def forward(self, features: Tensor) -> Tensor:
        if features.size(0) > 1:
            return features[:, :1]
        return features[:, 1:2]


@pytest.mark.parametrize("method", [None, "SHAPLEY_SAMPLING"])
def test_an_answer_that_depends_on_other_rows_is_not_explained(method: str | None, tmp_path: Path) -> None:
    within = Does(lambda x: torch.tanh(x - x.mean(dim=0, keepdim=True)).sum(dim=1, keepdim=True))
    for form, module in ((SCRIPT, within), (EXPORT, within), (SCRIPT, OneOfMany())):
        file = a_file(tmp_path, module, form, scripted=module is not within)
        assert explained(asked(file, form, method=method)).failure == "ANSWER_DEPENDS_ON_BATCH"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_numbers_of_half_the_size_are_explained(kind: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1), nn.Sigmoid()).to(kind)
    module = nn.Sequential(Does(lambda features: features.to(kind)), layers)
    [found] = explained(asked(a_file(tmp_path, module, SCRIPT), SCRIPT)).rows
    assert (found.method, found.stop) == ("INTEGRATED_GRADIENTS", "CONVERGED")


def two(features: Tensor) -> tuple[Tensor, Tensor]:
    scores = torch.softmax(features, dim=-1)
    return scores.argmax(dim=-1), scores


def named(features: Tensor) -> dict[str, Tensor]:
    label, scores = two(features)
    return {"probabilities": scores, "label": label}


@both
@pytest.mark.parametrize("does", [two, named])
def test_outputs_are_taken_by_place_or_by_name(
    does: Callable[[Tensor], Any], form: ModelFormat, tmp_path: Path
) -> None:
    file = a_file(tmp_path, Does(does), form)
    task = asked(file, form, outputs=("label", "probabilities"), place=None)
    [found] = explained(task).rows
    assert (found.method, found.place) == ("INTEGRATED_GRADIENTS", 0)
    assert found.answer == pytest.approx(torch.softmax(torch.tensor(ROW), dim=-1).max().item())
    jumping = task.model_copy(update={"output": "label"})
    assert TorchModel.load(jumping).nature == JUMPS
    if does is two:
        wrong = task.model_copy(update={"outputs": ("probabilities",)})
        assert explained_or_failed(wrong) == "MODEL_FAILED"


def explained_or_failed(task: Task) -> str | None:
    return worker.explained(TorchModel.load(task), task).failure


def test_no_more_rows_are_asked_at_once_than_a_program_takes(tmp_path: Path) -> None:
    file = a_file(tmp_path, Bends(), EXPORT, most_rows=5)
    for method in ("INTEGRATED_GRADIENTS", "SHAPLEY_SAMPLING"):
        [found] = explained(asked(file, EXPORT, method=method)).rows
        assert found.stop == "CONVERGED"


@both
def test_a_file_that_is_no_program_fails_as_a_model(form: ModelFormat, tmp_path: Path) -> None:
    file = tmp_path / form.file
    file.write_bytes(b"no program at all")
    with pytest.raises(ModelFailed):
        TorchModel.load(asked(file, form))


def test_where_pytorch_is_not_there_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.loader("torch", [""], 0) == TorchModel.load
    monkeypatch.delattr("headrace.inference.explainer.torch_model")
    monkeypatch.delitem(sys.modules, "headrace.inference.explainer.torch_model")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert worker.loader("torch", [""], 0) is None
