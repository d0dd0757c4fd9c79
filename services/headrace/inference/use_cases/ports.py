"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from headrace.inference.domain.analysis import Outcomes
from headrace.inference.domain.deployments import Deployment, ServedVersion
from headrace.inference.domain.drift import DriftRules
from headrace.inference.domain.quality import Met
from headrace.inference.domain.rollouts import Plan, Rollout
from headrace.inference.domain.scaling import ALL_SERVERS, Scale, Scaling
from headrace.inference.domain.sequential import Tally
from headrace.inference.domain.serving import DEFAULT_BATCH_SIZE, Serving
from headrace.inference.domain.trials import Trial
from headrace.messaging.events import Event


@dataclass(frozen=True, slots=True)
class TrueLabel:
    """What feedback says that a prediction should have been, and when that was said."""

    deployment: str
    prediction_id: str
    label: float | str
    time: datetime


@dataclass(frozen=True, slots=True)
class LoggedPrediction:
    """One entry of the prediction log. Tensors as {"name": {"datatype", "shape", "data"}}.

    `subject`: whose data the request was about, empty where it named nobody; stored and never read back.
    `shadow`: nobody got this answer, it was asked for to be compared. `mirror_id`: the same in both entries
    of a request that two versions were asked, else empty. `segment`: what kind of request it was, empty where
    it named none.
    """

    event_id: str
    prediction_id: str
    deployment: str
    version: int
    time: datetime
    seconds: float
    inputs: Mapping[str, object]
    outputs: Mapping[str, object]
    answer: float | None
    traceparent: str
    label: float | str | None = None
    subject: str = ""
    shadow: bool = False
    mirror_id: str = ""
    segment: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """One version's predictions of one segment; None: of all segments that are not among the largest."""

    version: int
    segment: str | None


@dataclass(frozen=True, slots=True)
class Counted:
    """Predictions of each group, and how many segments there are."""

    predictions: Mapping[Group, int]
    segments: int


class Rows(Protocol):
    """Rows of one transaction; `storage.repository` says what each method raises."""

    async def put_served_version(self, version: ServedVersion) -> None:
        """Remember a promoted version."""

    async def served_versions(self, model: str) -> list[ServedVersion]:
        """A model's promoted versions, oldest first."""

    async def served_version(self, model: str, version: int) -> ServedVersion | None:
        """One promoted version; None where there is none of that number."""

    async def all_served_versions(self) -> dict[str, list[ServedVersion]]:
        """Every model's promoted versions, oldest first."""

    async def create_or_lock_deployment(self, name: str, model: str, plan: Plan, now: datetime) -> Deployment:
        """Create the deployment; one that there is, being deleted or not, is locked and returned as it is."""

    async def change_plan(self, name: str, plan: Plan, now: datetime) -> None:
        """Roll out differently from now on."""

    async def change_drift_rules(self, name: str, rules: DriftRules) -> None:
        """Watch for drift differently from now on."""

    async def change_serving(self, name: str, serving: Serving, now: datetime) -> None:
        """Serve differently from now on."""

    async def has_log_table(self) -> bool:
        """Whether any deployment's predictions ever became rows of a dataset."""

    async def record_served(self, name: str, serving: Serving) -> None:
        """What is loaded is served so."""

    async def change_scaling(self, name: str, scaling: Scaling, now: datetime) -> None:
        """Follow the load within these bounds from now on."""

    async def change_scale(self, name: str, scale: Scale) -> None:
        """Where it is to be from now on."""

    async def record_placed(self, name: str, scale: Scale, now: datetime) -> None:
        """Requests go there from now on."""

    async def record_demand(self, name: str) -> None:
        """A request found it nowhere, and waits."""

    async def revive_deployment(self, name: str) -> None:
        """Take a deletion back. Its rollouts are forgotten: every version is new to it again."""

    async def deployment(self, name: str, *, lock: bool = False) -> Deployment:
        """One deployment, locked if asked."""

    async def deployments(self, after: str, limit: int) -> list[Deployment]:
        """Deployments by name."""

    async def all_deployments(self) -> list[Deployment]:
        """Every deployment, those that are being deleted too."""

    async def deployments_named(self, names: Collection[str]) -> list[Deployment]:
        """Those of them that there are, also those that are being deleted."""

    async def save_deployment(self, deployment: Deployment) -> None:
        """Store what changes while it lives."""

    async def forget_deployment(self, name: str) -> None:
        """Remove a deleted deployment's row."""

    async def all_rolled_out(self) -> dict[str, frozenset[int]]:
        """Versions that a rollout was made for, by deployment; not those that gave way to a newer one."""

    async def put_rollout(self, rollout: Rollout) -> None:
        """Store a rollout as it is."""

    async def rollouts(self, deployment: str, before: datetime, before_id: str, limit: int) -> list[Rollout]:
        """A deployment's rollouts, newest first."""

    async def put_predictions(self, predictions: Sequence[LoggedPrediction]) -> None:
        """Store predictions once each."""

    async def erase_predictions(self, erasure: str, dataset: str, subject: str, time: datetime) -> int:
        """Remove a subject's predictions and requests, and remember that.

        How many predictions this erasure has removed so far.
        """

    async def erase_late(self, event_ids: Sequence[str]) -> None:
        """Remove those of the predictions that were made before their subject was erased."""

    async def erased_from_tables(
        self, predictions: Sequence[tuple[str, str, str, datetime]]
    ) -> frozenset[str]:
        """Of (event id, dataset, subject, time) ids of what is from before the subject was erased there."""

    async def forget_predictions(self, age: timedelta, limit: int) -> int:
        """Remove so many that were stored so long ago, at most, and their labels; how many it has been."""

    async def forget_labels(self, age: timedelta, limit: int) -> int:
        """The same of labels that belong to no prediction."""

    async def forget_erasures(self, before: datetime) -> int:
        """Forget erasures from before that moment; how many there were."""

    async def put_feedback(self, labels: Sequence[TrueLabel]) -> None:
        """Store true labels; of a prediction's the newest one stands."""

    async def predictions(
        self, deployment: str, before: datetime, before_id: str, limit: int
    ) -> list[LoggedPrediction]:
        """A deployment's predictions, newest first."""

    async def prediction(self, deployment: str, prediction_id: str) -> LoggedPrediction:
        """The newest prediction of that id. Raises NotFound."""

    async def count_logged(self, deployment: str, prediction_ids: Collection[str]) -> int:
        """How many of these predictions are in the log."""

    async def prediction_counts(self, deployment: str, version: int, largest: int) -> Counted:
        """Predictions of each version (or of one that is not 0) and each of the largest segments."""

    async def answer_counts(
        self, deployment: str, version: int, segments: Collection[str]
    ) -> dict[Group, list[Met]]:
        """How often the answers of each version and each of these segments met which true labels."""

    async def latency_counts(
        self, deployment: str, since: Mapping[int, datetime]
    ) -> dict[int, dict[int, int]]:
        """Each version's predictions from its moment on, by bucket of latency."""

    async def answers_given(
        self, deployment: str, since: Mapping[int, datetime]
    ) -> dict[int, dict[float, int]]:
        """How often each version gave which answer from its moment on.

        A class that versions answer by different numbers is counted as the newest of them answers it.
        """

    async def answer_counts_since(
        self, deployment: str, since: Mapping[int, datetime]
    ) -> dict[int, list[Met]]:
        """How often each version's answers from its moment on met which true labels."""

    async def differing_answers(
        self, deployment: str, new: int, old: int, since: datetime, tolerance: float
    ) -> Tally:
        """Of mirrored requests, how many the new version answered otherwise than the old one, of how many.

        Classes are alike that are the same, by whatever number each version answers them; other numbers that
        differ by no more than `tolerance` of the old version's.
        """


class Work(Protocol):
    """One transaction."""

    @property
    def rows(self) -> Rows:
        """Its rows."""

    async def first_delivery(self, consumer: str, event: Event) -> bool:
        """Whether the consumer sees the event for the first time."""

    async def changed(self, deployment: str) -> None:
        """Queue the event that tells of a deployment as it now is."""


class UnitOfWork(Protocol):
    """Opens transactions."""

    def __call__(self) -> AbstractAsyncContextManager[Work]:
        """Begin one: committed at the block's end, rolled back when it raises."""

    def reading(self) -> AbstractAsyncContextManager[Work]:
        """Begin one that changes nothing: all that it reads is as of one moment."""


class LoadError(Exception):
    """Triton does not take a version: its file is wrong, or the model raises when it is loaded."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A deployment's ready versions on each server, None where one does not answer; dead on at least one."""

    servers: tuple[frozenset[int] | None, ...] = ()
    died: frozenset[int] = frozenset()

    def on(self, servers: Collection[int]) -> frozenset[int]:
        """Ready on every one of these servers that answers."""
        found = [has for number, has in enumerate(self.servers) if number in servers and has is not None]
        return frozenset.intersection(*found) if found else frozenset()

    def away(self, servers: Collection[int]) -> bool:
        """Whether none of these servers answers."""
        return all(has is None for number, has in enumerate(self.servers) if number in servers)

    def outside(self, servers: Collection[int]) -> bool:
        """Whether a server has any that is none of these."""
        return any(has for number, has in enumerate(self.servers) if number not in servers)

    @property
    def anywhere(self) -> frozenset[int]:
        """Ready, or dead, on at least one server."""
        return self.died.union(*(has for has in self.servers if has is not None))


class ModelServer(Protocol):
    """Triton, be it one server or several, which are known by their numbers from 0."""

    @property
    def count(self) -> int:
        """How many servers."""

    async def loaded(self) -> dict[str, Loaded]:
        """Ready versions of every deployment; none of one that no server knows.

        Raises Unavailable where no server answers.
        """

    async def load(
        self, deployment: str, versions: Sequence[ServedVersion], serving: Serving, servers: Collection[int]
    ) -> None:
        """Make exactly these versions answer there, served so, those that do already without a gap.

        Raises LoadError.
        """

    async def leave(self, deployment: str, kept: Collection[int]) -> None:
        """Stop answering for a deployment on all other servers."""

    async def unload(self, deployment: str) -> None:
        """Stop answering for a deployment, and remove its files."""

    async def outcomes(self, deployment: str) -> dict[int, Outcomes]:
        """Answers and failures of each version since it was loaded."""

    async def work_done(self) -> WorkDone:
        """What servers have done for each deployment. Raises Unavailable where none answers."""


@dataclass(frozen=True, slots=True)
class WorkDone:
    """Of every deployment, over all servers and since this service began to look.

    `up`: the servers that answer now. `requests`; `queued` and `busy` in seconds, as in
    `domain.scaling.Sample`.
    """

    requests: Mapping[str, int]
    queued: Mapping[str, float]
    busy: Mapping[str, float]
    up: frozenset[int]


@dataclass(frozen=True, slots=True)
class Route:
    """What Envoy knows of a deployment: its versions' shares, and what its callers are told it takes.

    `trial`: how requests meet a version that is being rolled out, beside its share. `most_rows`: of one
    request. `scale`: which servers it is on; on none a request has it loaded, and waits.
    """

    weights: Mapping[int, int]
    signature: str
    trial: Trial | None = None
    most_rows: int = DEFAULT_BATCH_SIZE
    scale: Scale = ALL_SERVERS


class DataPlane(Protocol):
    """Envoy."""

    def update(self, routes: Mapping[str, Route]) -> None:
        """Route requests so from now on."""

    def change(self, routes: Mapping[str, Route | None]) -> None:
        """Route requests to these deployments so from now on; to those with None no more."""

    def problem(self, deployment: str, route: Route) -> str:
        """Why requests are not routed so yet, for people; empty where they are."""
