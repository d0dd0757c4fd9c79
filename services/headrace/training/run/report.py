"""What a run leaves behind: `report.json`, the model's card, written when everything else is done."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, JsonValue, field_validator

from headrace.splits import Shares
from headrace.training.run.specification import Dataset, Preparation

REPORT_FILE: Final = "report.json"
MODEL_FILE: Final = "model.onnx"
PREPROCESS_FILE: Final = "preprocess.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Tensor(_Frozen):
    """A named tensor, in the Open Inference Protocol's words; -1 in the shape: any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Signature(_Frozen):
    """What the model takes and gives."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    features: tuple[str, ...]
    classes: tuple[str, ...]
    # A run that waits to be registered may be of a release that had none.
    texts: tuple[str, ...] = ()


class EpochLoss(_Frozen):
    """Losses after an epoch; `validation` is None where it was not measured."""

    epoch: int
    train: float
    validation: float | None


class Report(_Frozen):
    """How the model was made, and how good it is.

    `metrics` are by "split/metric"; one that is not finite is left out: JSON has no word for it.
    """

    model: str
    job: str
    run: str
    recipe: str
    parameters: dict[str, JsonValue]
    dataset: Dataset
    shares: Shares
    rows: dict[str, int]
    # A run that waits to be registered may be of a release that had none.
    preparations: tuple[Preparation, ...] = ()
    normalise_label: bool
    seed: int
    device: str
    epochs: int
    resumed_epoch: int
    stopped_early: bool
    best_epoch: int
    training_seconds: float
    losses: tuple[EpochLoss, ...]
    metrics: dict[str, float]
    signature: Signature
    code_version: str
    torch_version: str

    @field_validator("metrics", mode="before")
    @classmethod
    def _finite(cls, metrics: dict[str, float | None]) -> dict[str, float]:
        # Earlier releases wrote null.
        return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether the run in this folder has finished."""
        return (folder / REPORT_FILE).exists()

    @classmethod
    def read(cls, folder: Path) -> Report:
        """Read a finished run's report."""
        return cls.model_validate_json((folder / REPORT_FILE).read_bytes())

    def write(self, folder: Path) -> None:
        """Write the report, whole or not at all."""
        unfinished = folder / (REPORT_FILE + ".part")
        unfinished.write_text(self.model_dump_json(indent=2))
        unfinished.replace(folder / REPORT_FILE)
