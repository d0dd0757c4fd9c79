"""Between explanations and their messages."""

from __future__ import annotations

from headrace.api.inference.v1 import inference_pb2 as api
from headrace.inference.domain.explanations import BaselineKind, ExplainedRow, Method, value_texts
from headrace.inference.use_cases.explain import Explanation, GivenRows, Wish


def wish_from(request: api.ExplainRequest) -> Wish:
    """A request."""
    return Wish(
        deployment=request.deployment,
        rows=_rows(request.rows),
        prediction=request.prediction,
        version=request.version,
        method=Method(_plain(api.ExplanationMethod.Name(request.method))) if request.method else None,
        baseline=_baseline(request),
        answer_class=request.answer_class,
        evaluations=request.max_evaluations,
        patches=request.patches,
    )


def explanation_message(deployment: str, explanation: Explanation) -> api.Explanation:
    """An explanation."""
    return api.Explanation(
        deployment=deployment,
        version=explanation.version.version,
        baseline=api.BaselineKind.Value(f"BASELINE_KIND_{explanation.baseline}"),
        rows=[_row(explanation, place, row) for place, row in enumerate(explanation.rows)],
    )


def _row(explanation: Explanation, place: int, row: ExplainedRow) -> api.RowExplanation:
    question, found, classes = explanation.question, row.attributions, explanation.version.classes
    return api.RowExplanation(
        output=explanation.output,
        answer_class=classes[row.place] if row.place < len(classes) else "",
        answer=found.answer,
        baseline_answer=found.baseline_answer,
        completeness_gap=found.gap,
        method=api.ExplanationMethod.Value(f"EXPLANATION_METHOD_{row.method}"),
        attributions=[
            api.Attribution(
                feature=name, value=value, baseline_value=baseline_value, amount=amount, error=error
            )
            for name, value, baseline_value, amount, error in zip(
                question.features.names,
                value_texts(place, question.rows, question.features),
                value_texts(0, question.baseline, question.features),
                found.amounts.tolist(),
                found.errors.tolist(),
                strict=True,
            )
        ],
        evaluations=found.evaluations,
        samples=found.samples,
        stopped=api.ExplanationStop.Value(f"EXPLANATION_STOP_{found.stop}"),
    )


def _baseline(request: api.ExplainRequest) -> BaselineKind | GivenRows:
    if request.HasField("baseline_row"):
        return _rows(request.baseline_row)
    if request.baseline_kind == api.BASELINE_KIND_ZERO:
        return BaselineKind.ZERO
    return BaselineKind.TRAINING


def _rows(rows: api.InputRows) -> GivenRows:
    return GivenRows(rows.numbers, rows.texts)


def _plain(name: str) -> str:
    return name.removeprefix("EXPLANATION_METHOD_")
