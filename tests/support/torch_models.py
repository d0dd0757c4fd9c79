"""Small programs of PyTorch's for tests."""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor, nn

from headrace.api.registry.v1 import registry_pb2
from headrace.model_formats import ModelFormat


class Scores(nn.Module):
    """Three features to two scores, the second one larger for positive sums."""

    def forward(self, features: Tensor) -> Tensor:
        total = features.sum(dim=-1, keepdim=True)
        return torch.cat([-total, total], dim=-1)


def scores_signature() -> registry_pb2.Signature:
    """Also that of `tests.support.models.classifier` without its label."""
    tensor = registry_pb2.TensorSpec
    return registry_pb2.Signature(
        inputs=[tensor(name="features", datatype="FP32", shape=[-1, 3])],
        outputs=[tensor(name="probabilities", datatype="FP32", shape=[-1, 2])],
        classes=['"low"', '"high"'],
    )


def scores_program(form: ModelFormat, *, rows: int | None = None) -> bytes:
    """`Scores` in a format of PyTorch's; with `rows`, exported for as many and no others."""
    return program(Scores(), form, columns=3, rows=rows)


def program(
    module: nn.Module,
    form: ModelFormat,
    *,
    columns: int,
    rows: int | None = None,
    most_rows: int = 64,
    scripted: bool = False,
) -> bytes:
    """A module in a format of PyTorch's, traced or compiled for TorchScript."""
    written = io.BytesIO()
    example = torch.ones(rows or 2, columns)
    if form is ModelFormat.TORCHSCRIPT:
        with warnings.catch_warnings():
            # That torch.export follows it is known.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            saved = (
                torch.jit.script(module) if scripted else torch.jit.trace(module, (example,), strict=False)
            )
            torch.jit.save(saved, written)
    else:
        dynamic = None if rows else ({0: torch.export.Dim("rows", max=most_rows)},)
        torch.export.save(torch.export.export(module, (example,), dynamic_shapes=dynamic), written)
    return written.getvalue()
