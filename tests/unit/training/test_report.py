"""A run's report: what is written is read back, also what the release before wrote."""

from __future__ import annotations

import math
from pathlib import Path

from tests.support.reports import a_report

from headrace.training.run.report import Report


def test_a_metric_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    metrics = {"test/mse": math.inf, "test/r2": math.nan, "test/mae": 1.5}
    Report(**{**dict(a_report()), "metrics": metrics}).write(tmp_path)
    assert Report.read(tmp_path).metrics == {"test/mae": 1.5}
