"""A run's report: what is written is read back, also what the release before wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.support.reports import a_report

from headrace.training.run.report import REPORT_FILE, Report


def test_a_metric_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    metrics = {"test/mse": math.inf, "test/r2": math.nan, "test/mae": 1.5}
    Report(**{**dict(a_report()), "metrics": metrics}).write(tmp_path)
    assert Report.read(tmp_path).metrics == {"test/mae": 1.5}


def test_a_report_of_the_release_that_prepared_no_features_can_be_read(tmp_path: Path) -> None:
    document = a_report().model_dump(mode="json")
    del document["preparations"]
    document |= {"normalise": True, "metrics": {"test/mse": None, "test/mae": 1.5}}
    (tmp_path / REPORT_FILE).write_text(json.dumps(document))
    report = Report.read(tmp_path)
    assert report.preparations == ()
    assert report.metrics == {"test/mae": 1.5}
