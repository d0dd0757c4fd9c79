"""What a model is measured with: a request that its clients made, or zeros."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from tritonclient.grpc import service_pb2

from headrace.inference.domain.deployments import ServedVersion, Tensor
from headrace.inference.triton.samples import sample_request
from headrace.inference.use_cases.ports import LoggedPrediction

INPUTS = (Tensor("features", "FP32", (-1, 2)), Tensor("site", "INT64", (-1, 1)))
VERSION = ServedVersion("m", 3, "file:///m", "", INPUTS, (), (), b"", "")


def logged(rows: int, features: list[object]) -> LoggedPrediction:
    inputs = {
        "features": {"datatype": "FP32", "shape": [rows, 2], "data": features},
        # The log has every number as a float.
        "site": {"datatype": "INT64", "shape": [rows, 1], "data": [float(row) for row in range(rows)]},
    }
    return LoggedPrediction("e", "p", "live", 3, datetime(2026, 1, 1, tzinfo=UTC), 0.0, inputs, {}, None, "")


def test_the_newest_request_that_is_logged_whole_is_made_again() -> None:
    by_shape_alone = logged(1, [])
    log = [by_shape_alone, logged(2, [1.5, 2.0, 3.0, 4.0]), logged(5, [0.0] * 10)]
    sample = sample_request("tuning.live", VERSION, log)
    request = service_pb2.ModelInferRequest.FromString(sample.message)
    assert (request.model_name, request.model_version) == ("tuning.live", "3")
    assert [(tensor.name, list(tensor.shape)) for tensor in request.inputs] == [
        ("features", [2, 2]),
        ("site", [2, 1]),
    ]
    features, site = request.raw_input_contents
    assert np.frombuffer(features, np.float32).tolist() == [1.5, 2.0, 3.0, 4.0]
    assert np.frombuffer(site, np.int64).tolist() == [0, 1]
    # No batch may be smaller than the largest.
    assert sample.rows == 5
    assert "2 rows" in sample.source


def test_where_none_can_be_made_again_one_row_of_zeros_is() -> None:
    of_another_model = LoggedPrediction(
        "e", "p", "live", 1, datetime(2026, 1, 1, tzinfo=UTC), 0.0, {"other": {}}, {}, None, ""
    )
    sample = sample_request("tuning.live", VERSION, [of_another_model])
    request = service_pb2.ModelInferRequest.FromString(sample.message)
    assert [list(tensor.shape) for tensor in request.inputs] == [[1, 2], [1, 1]]
    assert request.raw_input_contents == [bytes(8), bytes(8)]
    assert sample.rows == 1
