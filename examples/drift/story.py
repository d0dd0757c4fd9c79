"""A shift's whole way, against a running stack.

After the scanner was replaced the platform is only asked what it sees. Patients ask, samples and truths
arrive, and the rest it does by itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from examples.drift import observed
from examples.drift.numbers import Clock, Phase, findings_table, phases_table, times_table
from examples.drift.scanner import (
    STRETCH,
    asking_patients,
    examinations,
    known_patients,
    on_the_new_scanner,
    stretched,
)
from examples.shared import jobs, rollouts
from examples.shared.samples import SAMPLES_TOPIC, Sample, publish, sample_record
from examples.shared.stages import Stages, console
from examples.shared.traffic import Seen, users
from examples.shared.waiting import until
from rich.text import Text

from headrace.api.inference.v1 import drift_pb2 as drift_api
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.api.scheduling.v1 import drift_pb2 as retraining_api
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.client import HeadraceClient, pipeline_file
from headrace.events.inference.v1.events_pb2 import DriftDetected

NAME = "scanner"
PIPELINE = Path(__file__).with_name("pipeline.yaml")
# After every four questions: about sixty are asked in a second.
PAUSE_SECONDS = 0.05
# By how much an accuracy has fallen, and how much of what was lost has to be back.
FALL, REGAINED = 0.03, 0.5
# Answers with a label that an accuracy is told from: as many as patients ask.
ENOUGH = 200


async def tell(client: HeadraceClient, stages: Stages) -> None:
    """From a first version through the shift to a second one, which has learnt the new scanner."""
    await apply_pipeline(client, stages)
    first = await learn(client, stages)
    before = await serve(client, stages, first)

    clock = Clock()
    bootstrap = client.kafka_bootstrap
    asked = on_the_new_scanner(asking_patients())
    measured = on_the_new_scanner(known_patients())
    async with coming(client, asked) as seen, examinations(bootstrap, NAME, measured):
        alert = await notice(client, stages, before, clock)
        second = await retrain(client, stages, alert, clock)
        await canary(client, stages, second, clock)
        after = await recover(client, stages, second, clock)
    fallen = (await observed.answers(client, NAME, first.version)).since(before.answers)
    during = Phase.of("the new one", first, fallen, alert.window)
    conclude(stages, [before, during, after], clock, seen)


def coming(client: HeadraceClient, patients: Sequence[Sample]) -> AbstractAsyncContextManager[Seen]:
    """Patients who ask for themselves, through Envoy, and whose diagnosis is known a little later."""
    address = client.targets.address("inference_protocol")
    return users(address, client.kafka_bootstrap, NAME, patients, PAUSE_SECONDS)


async def apply_pipeline(client: HeadraceClient, stages: Stages) -> None:
    """One YAML file says how the deployment is watched, and what may follow from an alert."""
    with stages.stage(f"Apply examples/drift/{PIPELINE.name}"):
        if await observed.knows(client, NAME):
            raise RuntimeError(f"this stack has a pipeline {NAME} with a past of its own: use a new stack")
        spec = (await client.scheduling.ApplyPipeline(pipeline_file.load(PIPELINE))).spec
        watched, bounds = spec.deployment.drift, spec.retrain_on_drift
        console.print(
            f"   alert: {watched.windows} windows of {watched.requests} requests that drift\n"
            f"   jobs by alerts: one in {bounds.cooldown.ToTimedelta()}, {bounds.max_per_day} a day, at most"
        )


async def learn(client: HeadraceClient, stages: Stages) -> registry.ModelVersion:
    """The first version learns from what the old scanner has measured; no other one is asked for."""
    with stages.stage("A first version learns from the old scanner's samples"):
        known = known_patients()
        records = [sample_record(NAME, sample) for sample in known]
        await publish(client.kafka_bootstrap, SAMPLES_TOPIC, records)
        request = ingestion.ListVersionsRequest(dataset=NAME)

        async def versions() -> list[ingestion.DatasetVersion]:
            return list((await client.ingestion.ListVersions(request)).versions)

        found = await until(versions, bool, "a dataset version")
        stages.check(
            f"dataset version {found[-1].version} has {found[-1].row_count} rows, {len(known)} were sent",
            holds=found[-1].row_count == len(known),
        )
        wish = scheduling.SubmitJobRequest(
            pipeline=NAME, dataset_version=found[-1].version, request_id=str(uuid.uuid4())
        )
        job = await jobs.succeeded(client, stages, (await client.scheduling.SubmitJob(wish)).id)
        version = await jobs.promoted(client, stages, job)
        course = await rollouts.follow(client, NAME, version.version)
        stages.check("it has all traffic", holds=course.state == "SUCCEEDED")
    return version


async def serve(client: HeadraceClient, stages: Stages, version: registry.ModelVersion) -> Phase:
    """Patients ask whom no model has seen, and nothing drifts."""
    with stages.stage("Patients ask whom no model has seen, and nothing drifts"):
        async with coming(client, asking_patients()) as seen:
            found = await calm(client, version.version)

        async def answered() -> observed.Answers:
            return await observed.answers(client, NAME, version.version)

        what = f"the truth about {seen.labelled} answers"
        known = await until(answered, lambda one: one.labelled >= seen.labelled, what)
        phase = Phase.of("the old one", version, known, found.window)
        stages.check(
            f"nothing drifts in {found.window.requests} requests: the largest index of "
            f"{len(found.window.findings)} columns is {phase.largest_index:.2f}",
            holds=not phase.drifting,
        )
        console.print(f"   accuracy {known.accuracy:.3f}, from {known.labelled} labels")
        none_failed(stages, seen)
    return phase


def none_failed(stages: Stages, seen: Seen) -> None:
    """Every patient was answered."""
    asked = seen.answered.total() + len(seen.failures)
    stages.check(f"of {asked} calls {len(seen.failures)} failed", holds=not seen.failures)
    for failure in sorted(set(seen.failures)):
        console.print(Text(f"   {failure}", "red"))


async def calm(client: HeadraceClient, version: int) -> drift_api.Drift:
    """The deployment, once a window of the version has been judged, and does not drift."""

    async def drift() -> drift_api.Drift:
        return await observed.drift(client, NAME)

    async with observed.explained(client, NAME):
        return await until(
            drift,
            lambda one: one.model_version == version and one.state == drift_api.DRIFT_STATE_CALM,
            f"a window of version {version} that does not drift",
        )


async def notice(client: HeadraceClient, stages: Stages, before: Phase, clock: Clock) -> DriftDetected:
    """Everything that comes from now on is measured by the new scanner; an alert says what has moved."""
    longer = f"{STRETCH - 1:.0%}".replace("%", " %")
    with stages.stage(f"The scanner is replaced: every length comes {longer} longer from now on"):
        async with observed.explained(client, NAME):
            alert = await observed.alert(client.kafka_bootstrap, NAME)
        clock.mark("alert")
        console.print(findings_table(alert.window))
        columns = list(alert.episode.columns)
        measured = [column for column in columns if column != observed.PREDICTION]
        stages.check(
            f"the alert names {len(columns)} columns: lengths and areas, and nothing that is none",
            holds=bool(measured) and all(stretched(column) > 1 for column in measured),
        )

        async def since() -> observed.Answers:
            return (await observed.answers(client, NAME, before.version)).since(before.answers)

        known = await until(since, lambda one: one.labelled >= ENOUGH, "the truth about what is answered now")
        stages.check(
            f"accuracy has fallen to {known.accuracy:.3f}, from {known.labelled} labels",
            holds=before.answers.accuracy - known.accuracy >= FALL,
        )
    return alert


async def retrain(
    client: HeadraceClient, stages: Stages, alert: DriftDetected, clock: Clock
) -> registry.ModelVersion:
    """The alert starts one job, on the newest data, and its version goes through the same gates."""
    with stages.stage("The alert starts a job, whose version goes through the same gates"):

        async def started() -> list[retraining_api.Retraining]:
            found = await observed.retrainings(client, NAME)
            return [one for one in found if one.state == retraining_api.RETRAINING_STATE_STARTED]

        async with observed.explained(client, NAME):
            [retraining] = await until(started, bool, "the alert to start a job")
        clock.mark("job started")
        stages.check("it is this alert that started it", holds=retraining.episode == alert.episode.id)
        job = await jobs.succeeded(client, stages, retraining.job)
        stages.check(
            f"it has learnt from dataset version {job.dataset_version}, the one before from "
            f"{alert.episode.dataset_version}",
            holds=job.dataset_version > alert.episode.dataset_version,
        )
        version = await jobs.promoted(client, stages, job)
        clock.mark("version promoted")
    return version


async def canary(
    client: HeadraceClient, stages: Stages, version: registry.ModelVersion, clock: Clock
) -> None:
    """The version gets a share of the live calls, is judged by their labels, and then gets all."""
    wanted = list(pipeline_file.load(PIPELINE).spec.deployment.rollout.steps)
    with stages.stage("It gets live calls step by step, and is judged by their labels"):
        async with observed.explained(client, NAME):
            course = await rollouts.follow(client, NAME, version.version)
        if course.state != "SUCCEEDED":
            raise RuntimeError(await observed.standing(client, NAME))
        clock.mark("all traffic")
        steps = ", ".join(f"{step} %" for step in course.steps)
        stages.check(f"it had {steps}, and was found no worse at any step", holds=course.steps == wanted)


async def recover(
    client: HeadraceClient, stages: Stages, version: registry.ModelVersion, clock: Clock
) -> Phase:
    """What is asked is what the new version has learnt from."""
    with stages.stage("What is asked is what the new version has learnt"):
        begun = await observed.answers(client, NAME, version.version)
        found = await calm(client, version.version)
        clock.mark("calm again")

        async def since() -> observed.Answers:
            return (await observed.answers(client, NAME, version.version)).since(begun)

        known = await until(since, lambda one: one.labelled >= ENOUGH, "the truth about its answers")
        phase = Phase.of("the new one", version, known, found.window)
        stages.check(
            f"nothing drifts in {found.window.requests} requests: the largest index is "
            f"{phase.largest_index:.2f}",
            holds=not phase.drifting,
        )
        reasons = [episode.end_reason for episode in found.episodes]
        stages.check(
            "the episode is over, for another version answers",
            holds=reasons == [drift_api.DRIFT_END_REASON_REPLACED],
        )
        led_to = await observed.retrainings(client, NAME)
        stages.check(f"it has led to {len(led_to)} job", holds=len(led_to) == 1)
    return phase


def conclude(stages: Stages, phases: Sequence[Phase], clock: Clock, seen: Seen) -> None:
    """Before, during and after, one under the other, and what came when."""
    with stages.stage("Before, during and after"):
        console.print(phases_table(phases), times_table(clock), sep="\n\n")
        before, during, after = (phase.answers.accuracy for phase in phases)
        stages.check(
            f"the shift took {before - during:.3f} from the accuracy, and {after - during:.3f} are back",
            holds=before - during >= FALL and after - during >= REGAINED * (before - during),
        )
        none_failed(stages, seen)
