"""Why a model said so: which inputs of a row moved its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.explanations import (
    BaselineKind,
    ExplainedModel,
    ExplainedRow,
    Method,
    Question,
    Table,
    baseline_row,
)
from headrace.inference.domain.features import Features
from headrace.inference.use_cases.explain_ports import Explainer, TrainingProfiles
from headrace.inference.use_cases.ports import LoggedPrediction, UnitOfWork

DEFAULT_EVALUATIONS = 20_000
DEFAULT_PATCHES = 8


@dataclass(frozen=True, slots=True)
class GivenRows:
    """Rows as they come: numbers and texts, each row by row."""

    numbers: Sequence[float]
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller asks; the proto says what each of it means. Empty rows where it is about a prediction."""

    deployment: str
    rows: GivenRows = GivenRows((), ())
    prediction: str = ""
    version: int = 0
    method: Method | None = None
    baseline: BaselineKind | GivenRows = BaselineKind.TRAINING
    answer_class: str = ""
    evaluations: int = 0
    patches: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """What was asked of which version, and what was found about each row."""

    version: ServedVersion
    output: str
    baseline: BaselineKind
    question: Question
    rows: Sequence[ExplainedRow]


class Explain:
    """The use case."""

    def __init__(
        self,
        work: UnitOfWork,
        profiles: TrainingProfiles,
        explainer: Explainer,
        *,
        max_rows: int,
        max_evaluations: int,
    ) -> None:
        self._work = work
        self._profiles = profiles
        self._explainer = explainer
        self._max_rows = max_rows
        self._max_evaluations = max_evaluations

    async def __call__(self, wish: Wish) -> Explanation:
        """Explain rows, or a prediction that is in the log; the errors are those of the RPC.

        A prediction that is erased while it is explained is not explained.
        """
        prediction: LoggedPrediction | None = None
        async with self._work() as work:
            deployment = await work.rows.deployment(wish.deployment)
            versions = await work.rows.served_versions(deployment.model)
            if wish.prediction:
                prediction = await work.rows.prediction(wish.deployment, wish.prediction)
        version = _version(wish, deployment, versions, prediction)
        model = ExplainedModel.of(version)
        rows = (
            model.logged(prediction.inputs)
            if prediction is not None
            else model.table(wish.rows.numbers, wish.rows.texts)
        )
        self._check_cost(wish, rows)
        features = model.features(version, wish.patches or DEFAULT_PATCHES)
        question = Question(
            rows=rows,
            baseline=await self._baseline(wish, version, model, features),
            features=features,
            place=model.place(version, wish.answer_class),
            method=wish.method,
            evaluations=wish.evaluations or min(DEFAULT_EVALUATIONS, self._max_evaluations),
        )
        found = await self._explainer.explain(version, model, question)
        if prediction is not None:
            async with self._work() as work:
                await work.rows.prediction(wish.deployment, wish.prediction)
        kind = wish.baseline if isinstance(wish.baseline, BaselineKind) else BaselineKind.ROW
        return Explanation(version, model.output, kind, question, found)

    def _check_cost(self, wish: Wish, rows: Table) -> None:
        if len(rows) > self._max_rows:
            raise _too_much(
                "TOO_MANY_ROWS", "rows", f"{len(rows)} rows, and {self._max_rows} are explained at once"
            )
        if wish.evaluations > self._max_evaluations:
            raise _too_much(
                "TOO_MANY_EVALUATIONS",
                "max_evaluations",
                f"{self._max_evaluations:,} evaluations are the most",
            )

    async def _baseline(
        self, wish: Wish, version: ServedVersion, model: ExplainedModel, features: Features
    ) -> Table:
        match wish.baseline:
            case GivenRows(numbers, texts):
                table = model.table(numbers, texts)
                if len(table) > 1:
                    raise _too_much("TOO_MANY_ROWS", "baseline_row", "a baseline is one row")
                return table
            case BaselineKind.TRAINING if features.scalars:
                if not version.dataset_version:
                    raise FailedPrecondition(
                        "BASELINE_UNKNOWN",
                        f"it is not known what {version.model} version {version.version} was trained on; "
                        "name another baseline",
                    )
                typical = await self._profiles.typical(version.dataset, version.dataset_version)
                return model.table(*baseline_row(features, typical))
            case _:
                return model.table(*baseline_row(features, {}))


def _version(
    wish: Wish,
    deployment: Deployment,
    versions: Sequence[ServedVersion],
    prediction: LoggedPrediction | None,
) -> ServedVersion:
    most = max(deployment.traffic, key=lambda version: deployment.traffic[version], default=0)
    number = wish.version or (prediction.version if prediction else most)
    if not number:
        raise FailedPrecondition(
            "NO_VERSION_LIVE",
            f"deployment {deployment.name} has no version that answers; name one to explain",
        )
    for version in versions:
        if version.version == number:
            return version
    raise NotFound("VERSION_NOT_FOUND", f"{deployment.model} has no promoted version {number}")


def _too_much(reason: str, field: str, sentence: str) -> InvalidArgument:
    return InvalidArgument(reason, sentence, fields=[FieldViolation(field, sentence)])
