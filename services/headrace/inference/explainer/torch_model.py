"""Programs of PyTorch's, which answer and know their gradients. CUDA is not used: a GPU is for what serves.

Inputs go by position, and an output comes by position or in a dictionary by name, as where they serve.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.export
from torch import Tensor

from headrace.inference.domain.attribution import NoGradients, Numbers, Texts
from headrace.inference.explainer.frames import Task
from headrace.inference.explainer.models import ModelFailed, of_the_model
from headrace.inference.explainer.torch_graph import (
    Nature,
    chosen,
    nature_of_exported,
    nature_of_script,
)
from headrace.model_formats import ModelFormat

_CPU: Final = torch.device("cpu")


def prepare() -> None:
    """Compute on one thread, and start what PyTorch starts with the first gradient: idle threads for GPUs."""
    torch.set_num_threads(1)
    number = torch.ones((), requires_grad=True)
    torch.autograd.grad(2 * number, number)


@dataclass(frozen=True, slots=True)
class TorchModel:
    """One that PyTorch evaluates. `most_rows`: that it takes at once."""

    program: Callable[[Tensor], object]
    output: str
    place: int
    outputs: int
    most_rows: int
    nature: Nature

    @classmethod
    def load(cls, task: Task) -> TorchModel:
        """Raises ModelFailed, MemoryError."""
        place = task.outputs.index(task.output)
        with of_the_model(), warnings.catch_warnings():
            # What it has to say to whoever wrote the program.
            warnings.simplefilter("ignore")
            # PyTorch's older form is a pickle, which nothing that serves would load.
            if not zipfile.is_zipfile(task.file):
                raise ModelFailed
            match task.format:
                case ModelFormat.TORCHSCRIPT:
                    script = torch.jit.load(task.file, map_location=_CPU).eval()  # type: ignore[no-untyped-call]
                    nature = nature_of_script(script, task.output, place)
                    module, most_rows = script, 0
                case _:
                    exported = torch.export.load(task.file)
                    nature = nature_of_exported(exported, task.output, place)
                    module, most_rows = exported.module(), _most_rows(exported)
            for parameter in module.parameters():
                parameter.requires_grad_(False)
        return cls(module, task.output, place, len(task.outputs), most_rows, nature)

    @property
    def continuous(self) -> bool:
        """As `Model` has it."""
        return self.nature.continuous

    @property
    def differentiable(self) -> bool:
        """As `Model` has it."""
        return self.nature.differentiable

    def answer(self, numbers: Numbers, texts: Texts) -> Numbers:
        """As `Model` has it."""
        with of_the_model(), torch.inference_mode():
            answers = [self._values(rows).double().numpy() for rows in self._parts(numbers)]
        output = np.concatenate(answers)
        if not np.isfinite(output).all():
            raise ModelFailed
        return output

    def gradients(self, numbers: Numbers, place: int) -> Numbers:
        """As `Model` has it."""
        try:
            with of_the_model(), torch.enable_grad():
                return np.concatenate([self._slopes(rows, place) for rows in self._parts(numbers)])
        except ModelFailed:
            # It answers, and says how only where nobody asks for gradients.
            raise NoGradients from None

    def close(self) -> None:
        """Nothing."""

    def _parts(self, numbers: Numbers) -> Iterator[Tensor]:
        rows = torch.from_numpy(numbers.astype(np.float32))
        size = self.most_rows or max(1, len(rows))
        return (rows[first : first + size] for first in range(0, len(rows), size))

    def _values(self, rows: Tensor) -> Tensor:
        """What the program answers: [rows, values]."""
        # Without what PyTorch compiles for programs that run often, which knows ways of its own to gradients.
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            answer = self.program(rows)
        count = len(answer) if isinstance(answer, tuple | list) else 1
        if not isinstance(answer, dict) and count != self.outputs:
            raise ModelFailed
        values = chosen(answer, self.output, self.place)
        if not isinstance(values, Tensor) or len(values) != len(rows):
            raise ModelFailed
        return values.reshape(len(rows), -1)

    def _slopes(self, rows: Tensor, place: int) -> Numbers:
        rows = rows.detach().requires_grad_()
        # A program that writes to its input cannot write to what gradients are asked for.
        value = self._values(rows.clone())[:, place].sum()
        (slopes,) = torch.autograd.grad(value, rows)
        return np.asarray(slopes.double().numpy())


def _most_rows(program: torch.export.ExportedProgram) -> int:
    """How many rows a program says that it takes at once; 0 where it says nothing."""
    names = program.graph_signature.user_inputs
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            symbol = getattr(getattr(node.meta["val"].shape[0], "node", None), "expr", None)
            bounds = program.range_constraints.get(symbol) if symbol is not None else None
            upper = float(bounds.upper) if bounds is not None else math.inf
            return int(upper) if math.isfinite(upper) else 0
    return 0
