"""Models as training exports them, with weights that nobody trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from headrace.recipes import MlpParameters
from headrace.training.run.export import export
from headrace.training.run.model import Normalised, build_mlp
from headrace.training.run.preprocessing import Preprocessor, fit
from headrace.training.run.report import Signature
from headrace.training.run.scale import Scale
from headrace.training.run.specification import Column, Dataset, Label, Preparation


def export_mlp(
    path: Path,
    preparations: Sequence[Preparation],
    rows: Tensor,
    texts: Mapping[str, tuple[str, ...]] | None = None,
) -> tuple[Normalised, Signature]:
    """Write a classifier of two classes; `rows` are its training data, `texts` its texts' categories."""
    known = dict(texts or {})
    torch.manual_seed(3)
    preprocessor = Preprocessor(fit(preparations, [rows], 0, texts=known))
    network = build_mlp(preprocessor.width, 2, MlpParameters(hidden=(8,), activation="tanh"))
    model = Normalised(network, preprocessor, Scale.identity(1))
    dataset = Dataset(
        name="people",
        version=1,
        table_uri="",
        table_version=0,
        content_hash="",
        key="id",
        features=tuple(
            Column(name=wish.feature, type="string" if wish.feature in known else "float32")
            for wish in preparations
        ),
        label=Label(name="ill", type="int8", classes=("0", "1")),
    )
    return model, export(model, dataset, known, rows, path, classified=True)
