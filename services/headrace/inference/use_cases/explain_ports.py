"""What explanations need from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from headrace.inference.domain.deployments import ServedVersion
from headrace.inference.domain.explanations import ExplainedModel, ExplainedRow, Question


class Explainer(Protocol):
    """What computes, apart from everything that serves."""

    async def explain(
        self, version: ServedVersion, model: ExplainedModel, question: Question
    ) -> Sequence[ExplainedRow]:
        """Explain rows within the call's deadline.

        Raises FailedPrecondition METHOD_NOT_APPLICABLE, ANSWER_DEPENDS_ON_BATCH, MODEL_FAILED,
        MODEL_FILE_MISSING, PYTORCH_MISSING, PACKAGES_NOT_EXPLAINED, PACKAGE_NOT_READY; InvalidArgument
        TOO_FEW_EVALUATIONS; DataLoss MODEL_FILE_MISMATCH; ResourceExhausted EXPLAINER_BUSY,
        EXPLAINER_OUT_OF_MEMORY; DeadlineExceeded EXPLANATION_TOO_SLOW; Internal EXPLAINER_DIED.
        """


class TrainingProfiles(Protocol):
    """What the rows of dataset versions look like."""

    async def typical(self, dataset: str, version: int) -> Mapping[str, float | str]:
        """Each feature's typical value, of those that have one.

        Raises FailedPrecondition BASELINE_UNKNOWN, Unavailable BASELINE_UNAVAILABLE.
        """
