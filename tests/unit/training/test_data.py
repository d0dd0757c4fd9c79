from __future__ import annotations

import pyarrow as pa
import pytest
import torch

from headrace.recipes import MlpParameters
from headrace.splits import ByKey, Shares, assign
from headrace.training.run.data import InSplit
from headrace.training.run.errors import ModelTooLarge
from headrace.training.run.export import require_exportable
from headrace.training.run.model import Normalised, build_mlp
from headrace.training.run.preprocessing import Preprocessor, fit
from headrace.training.run.scale import Scale
from headrace.training.run.specification import Preparation

SHARES = Shares(train=0.7, validation=0.15, test=0.15)


def test_a_splits_rows_have_its_keys_and_a_label() -> None:
    keys = pa.array([f"key-{number}" for number in range(40)])
    labels = [None if number % 4 == 0 else number for number in range(40)]
    batch = pa.record_batch({"k": keys, "y": pa.array(labels, pa.int8())})
    found = [InSplit(number, ByKey("k", SHARES), "y").mask(batch).tolist() for number in range(3)]
    expected = [
        [
            split == number and label is not None
            for split, label in zip(assign(keys, SHARES).tolist(), labels, strict=True)
        ]
        for number in range(3)
    ]
    assert found == expected


def test_a_model_that_no_file_can_hold_is_refused_before_it_is_trained() -> None:
    preprocessor = Preprocessor(fit([Preparation(feature="x")], [torch.zeros(2, 1)], 0))

    def model(hidden: int) -> Normalised:
        with torch.device("meta"):
            network = build_mlp(1 << 20, 2, MlpParameters(hidden=(hidden,)))
        return Normalised(network, preprocessor, Scale.identity(1))

    require_exportable(model(256))
    with pytest.raises(ModelTooLarge, match="first hidden layer smaller"):
        require_exportable(model(512))
