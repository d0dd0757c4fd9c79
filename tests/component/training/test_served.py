"""A prepared model in Triton answers raw rows as the trained one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tests.support.serving import answered

from headrace.recipes import MlpParameters
from headrace.training.run.export import Classifier, export
from headrace.training.run.model import Normalised, build_mlp
from headrace.training.run.preprocessing import Preprocessor, fit
from headrace.training.run.scale import Scale
from headrace.training.run.specification import Column, Dataset, Label, Preparation

PREPARATIONS = (
    Preparation(feature="area", missing="median", indicator=True, log=True, normalise="robust"),
    Preparation(feature="age", clip_min=0, clip_max=90, normalise="min_max"),
    Preparation(feature="site", encode="one_hot", missing="constant"),
    Preparation(feature="grade", encode="ordinal"),
)
DATASET = Dataset(
    name="d",
    version=1,
    table_uri="",
    table_version=0,
    content_hash="",
    key="k",
    features=tuple(Column(name=wish.feature, type="float32") for wish in PREPARATIONS),
    label=Label(name="y", type="int8", classes=("0", "1")),
)


def raw_rows(rows: int, seed: int) -> torch.Tensor:
    """Measurements and codes, some of them missing."""
    random = np.random.default_rng(seed)
    area = np.where(random.random(rows) < 0.3, np.nan, random.lognormal(3, 2, rows))
    site = np.where(random.random(rows) < 0.3, np.nan, random.integers(0, 4 + seed, rows))
    columns = [area, random.normal(50, 30, rows), site, random.integers(1, 4 + seed, rows)]
    return torch.from_numpy(np.column_stack(columns).astype(np.float32))


async def test_triton_prepares_raw_rows_as_training_did(kafka_bootstrap: str, tmp_path: Path) -> None:
    train, asked = raw_rows(200, 0), raw_rows(64, 3)
    torch.manual_seed(1)
    preprocessor = Preprocessor(fit(PREPARATIONS, [train], 0))
    network = build_mlp(preprocessor.width, 2, MlpParameters(hidden=(8,)))
    model = Normalised(network, preprocessor, Scale.identity(1)).eval()
    file = tmp_path / "model.onnx"
    signature = export(model, DATASET, {}, train, file, classified=True)

    answer = await answered(kafka_bootstrap, tmp_path, file.read_bytes(), signature, asked.numpy())
    with torch.no_grad():
        probabilities, labels = Classifier(model, (0, 1))(asked)
    assert asked.isnan().any()
    np.testing.assert_allclose(answer.as_numpy("probabilities"), probabilities.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(answer.as_numpy("label").reshape(-1), labels.numpy())
