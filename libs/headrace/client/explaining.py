"""Requests for explanations, from rows as people write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.client.inference_protocol import Row, columns

ExplanationMethod: TypeAlias = Literal["integrated_gradients", "shapley_sampling"]
Baseline: TypeAlias = Literal["training", "zero"] | Row

_KINDS: Final = {"training": api.BASELINE_KIND_TRAINING, "zero": api.BASELINE_KIND_ZERO}


def explain_request(
    deployment: str,
    features: Sequence[Row],
    *,
    prediction: str,
    version: int,
    method: ExplanationMethod | None,
    baseline: Baseline,
    answer_class: str,
    max_evaluations: int,
    patches: int,
) -> api.ExplainRequest:
    """A request about rows, or a prediction. Raises InvalidArgument INVALID_FEATURES."""
    request = api.ExplainRequest(
        deployment=deployment,
        version=version,
        method=api.ExplanationMethod.Value(f"EXPLANATION_METHOD_{(method or 'unspecified').upper()}"),
        answer_class=answer_class,
        max_evaluations=max_evaluations,
        patches=patches,
    )
    # Together: columns of texts are those that have one in any of the rows.
    own = [] if isinstance(baseline, str) else [baseline]
    numbers, texts = columns([*features, *own]) if features or own else (None, None)
    count = len(features)
    if features:
        request.rows.CopyFrom(_rows(numbers, texts, slice(count)))
    if prediction:
        request.prediction = prediction
    if isinstance(baseline, str):
        request.baseline_kind = _KINDS[baseline]
    else:
        request.baseline_row.CopyFrom(_rows(numbers, texts, slice(count, None)))
    return request


def _rows(
    numbers: NDArray[np.float32] | None, texts: NDArray[np.object_] | None, part: slice
) -> api.InputRows:
    return api.InputRows(
        numbers=[] if numbers is None else numbers[part].ravel().tolist(),
        texts=[] if texts is None else [text.decode() for text in texts[part].ravel()],
    )
