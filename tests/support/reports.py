"""A finished run's report."""

from __future__ import annotations

from headrace.splits import Shares
from headrace.training.run.report import Report, Signature
from headrace.training.run.specification import Dataset, Label


def a_report() -> Report:
    """The smallest one."""
    dataset = Dataset(
        name="d",
        version=1,
        table_uri="",
        table_version=0,
        content_hash="",
        key="k",
        features=(),
        label=Label(name="y", type="int8"),
    )
    return Report(
        model="p",
        job="job",
        run="job-1",
        recipe="mlp",
        parameters={},
        dataset=dataset,
        shares=Shares(train=1, validation=0, test=0),
        rows={},
        preparations=(),
        normalise_label=False,
        seed=1,
        device="cpu",
        epochs=1,
        resumed_epoch=0,
        stopped_early=False,
        best_epoch=1,
        training_seconds=0,
        losses=(),
        metrics={"test/accuracy": 1.0},
        signature=Signature(inputs=(), outputs=(), features=(), classes=()),
        code_version="",
        torch_version="",
    )
