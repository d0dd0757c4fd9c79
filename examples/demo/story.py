"""From events to predictions: the demo's story, against a running stack."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from pathlib import Path

from aiokafka import AIOKafkaConsumer
from examples.demo.broken import break_five, with_true_radius
from examples.shared import jobs, rollouts
from examples.shared.predictions import predict
from examples.shared.samples import (
    FEEDBACK_TOPIC,
    SAMPLES_TOPIC,
    feedback_records,
    load,
    publish,
    sample_record,
)
from examples.shared.stages import Stages, console
from examples.shared.traffic import users
from examples.shared.waiting import DEADLINE_SECONDS, until, within
from opentelemetry import trace
from rich.text import Text

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.cli import waterfall
from headrace.cli.plain import plain
from headrace.cli.traces import TraceStore
from headrace.client import HeadraceClient, pipeline_file
from headrace.messaging.topics import REJECTED_SAMPLES
from headrace.telemetry import tracing

PIPELINE = Path(__file__).parents[1] / "breast-cancer" / "pipeline.yaml"
DATASET = "breast-cancer"
HELD_BACK = 100
STORED = 464
REJECTED = 5
MIN_ACCURACY = 0.93

# Everyone who must have left a span in the one trace.
PARTIES = (
    "headrace-ingestion",
    "headrace-scheduling",
    "headrace-training",
    "headrace-registry",
    "headrace-inference",
    "envoy",
    "triton",
)


async def tell(client: HeadraceClient, stages: Stages) -> None:
    """From a pipeline to predictions, a second and a bad version, a rejected event mended, and the trace."""
    with tracing.span("demo", parent=""):
        traceparent = tracing.current_traceparent()
        await apply_pipeline(client, stages)
        await send_samples(client, stages, traceparent)
        dataset_version = await train(client, stages)
        await roll_out(client, stages)
        await use(client, stages, traceparent)
    # Traces of their own: that one is the samples' way to their prediction.
    with tracing.span("second version", parent=""):
        await bring_second_version(client, stages, dataset_version)
    with tracing.span("bad version", parent=""):
        await bring_bad_version(client, stages, dataset_version)
    await replay_rejected(client, stages)
    trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]
    await show_trace(client, stages, traceparent.split("-")[1])


async def apply_pipeline(client: HeadraceClient, stages: Stages) -> None:
    """One YAML file makes a dataset, a model's gates and a deployment."""
    with stages.stage(f"Apply examples/breast-cancer/{PIPELINE.name}"):
        pipeline = await client.scheduling.ApplyPipeline(pipeline_file.load(PIPELINE))
        features = len(pipeline.spec.dataset.schema.features)
        console.print(f"   pipeline {pipeline.name}: {features} features, {len(pipeline.spec.gates)} gates")


async def send_samples(client: HeadraceClient, stages: Stages, traceparent: str) -> None:
    """Publish with an ordinary producer, and see what became of the events."""
    with stages.stage("Publish samples as CloudEvents with an ordinary Kafka producer"):
        learned_from = load()[HELD_BACK:]
        records = break_five([sample_record(DATASET, sample, traceparent) for sample in learned_from])
        await publish(client.kafka_bootstrap, SAMPLES_TOPIC, records)
        console.print(f"   {len(records)} events on {SAMPLES_TOPIC}, {REJECTED} of them broken")

    with stages.stage("Ingestion validates them and commits a dataset version"):
        request = ingestion.ListVersionsRequest(dataset=DATASET)

        async def versions() -> list[ingestion.DatasetVersion]:
            return list((await client.ingestion.ListVersions(request)).versions)

        async def rejected() -> list[ingestion.RejectedSample]:
            return list((await client.ingestion.ListRejected(ingestion.ListRejectedRequest())).rejected)

        found = await until(versions, bool, "a dataset version")
        refused = await until(rejected, lambda rows: len(rows) >= REJECTED, "the rejected events")
        version = found[0]
        console.print(f"   version {version.version}, content hash {version.content_hash[:12]}…")
        for event in refused:
            console.print(Text(f"   rejected {event.reason}: {event.message}", "yellow"))
        stages.check(
            f"{version.row_count} samples stored, {STORED} expected", holds=version.row_count == STORED
        )
        on_topic = await count_rejected(client.kafka_bootstrap)
        stages.check(
            f"{len(refused)} events rejected, {on_topic} on {REJECTED_SAMPLES}, {REJECTED} expected",
            holds=len(refused) == on_topic == REJECTED,
        )


async def count_rejected(bootstrap: str) -> int:
    """Read the rejected topic as any consumer would."""
    seen: set[bytes] = set()
    consumer = AIOKafkaConsumer(REJECTED_SAMPLES, bootstrap_servers=bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with within(DEADLINE_SECONDS, f"{REJECTED} events on {REJECTED_SAMPLES}"):
            while len(seen) < REJECTED:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    seen |= {dict(record.headers)["ce_id"] for record in records}
    finally:
        await consumer.stop()
    return len(seen)


async def train(client: HeadraceClient, stages: Stages) -> int:
    """Follow the job that the dataset version started; returns which one that is."""
    with stages.stage("Scheduling places a training job; its node trains, evaluates and exports to ONNX"):
        request = scheduling.ListJobsRequest(pipeline=DATASET)

        async def listed() -> list[scheduling.Job]:
            return list((await client.scheduling.ListJobs(request)).jobs)

        job = await jobs.succeeded(client, stages, (await until(listed, bool, "a training job"))[0].id)

    with stages.stage("The registry records the version with its lineage and judges its gates"):
        await jobs.promoted(client, stages, job)
    return job.dataset_version


async def roll_out(client: HeadraceClient, stages: Stages) -> None:
    """The first version gets all traffic at once: nothing answers yet that could be protected."""
    with stages.stage("Inference rolls the version out on Triton behind Envoy"):
        course = await rollouts.follow(client, DATASET, version=1)
        stages.check("the rollout succeeded", holds=course.state == "SUCCEEDED")


async def use(client: HeadraceClient, stages: Stages, traceparent: str) -> None:
    """Predict with a stock client, and send the true labels back."""
    with stages.stage("A stock tritonclient predicts the 100 held-back samples through Envoy"):
        held_back = load()[:HELD_BACK]
        address = client.targets.address("inference_protocol")
        outcome = await asyncio.to_thread(predict, address, DATASET, held_back, traceparent)
        console.print(
            f"   latency p50 {outcome.percentile(50):.2f} ms, p99 {outcome.percentile(99):.2f} ms; "
            f"answered by version {', '.join(sorted(outcome.versions))}"
        )
        stages.check(
            f"accuracy {outcome.accuracy:.3f}, at least {MIN_ACCURACY} expected; recall {outcome.recall:.3f}",
            holds=outcome.accuracy >= MIN_ACCURACY,
        )

    with stages.stage("The true labels go back as feedback events"):
        await publish(
            client.kafka_bootstrap,
            FEEDBACK_TOPIC,
            feedback_records(outcome.true_labels, DATASET, traceparent),
        )

        async def quality() -> inference.Quality:
            return await client.inference.GetQuality(inference.GetQualityRequest(deployment=DATASET))

        live = await until(quality, lambda q: q.feedback_count >= len(held_back), "the feedback")
        stages.check(
            f"live accuracy is {live.metrics['accuracy']:.3f}, from {live.feedback_count} labels",
            holds=abs(live.metrics["accuracy"] - outcome.accuracy) < 1e-9,
        )


async def train_again(client: HeadraceClient, stages: Stages, dataset_version: int) -> scheduling.Job:
    """Train by the pipeline as it is now."""
    # The request's id makes it safe to ask again: the same one answers the same job.
    request = scheduling.SubmitJobRequest(
        pipeline=DATASET, dataset_version=dataset_version, request_id=str(uuid.uuid4())
    )
    return await jobs.succeeded(client, stages, (await client.scheduling.SubmitJob(request)).id)


async def bring_second_version(client: HeadraceClient, stages: Stages, dataset_version: int) -> None:
    """Train again, and see the traffic move from the first version to the second one in steps."""
    with stages.stage("A second version is trained on the same dataset version"):
        job = await train_again(client, stages, dataset_version)

    wanted = list(pipeline_file.load(PIPELINE).spec.deployment.rollout.steps)
    said = ", ".join(f"{step} %" for step in wanted)
    with stages.stage(f"Traffic moves to it from the first version in steps: {said}"):
        course = await rollouts.follow(client, DATASET, job.model_version)
        stages.check("the rollout succeeded", holds=course.state == "SUCCEEDED")
        seen = ", ".join(f"{step} %" for step in course.steps)
        stages.check(f"version {job.model_version} had {seen} of the traffic", holds=course.steps == wanted)


async def bring_bad_version(client: HeadraceClient, stages: Stages, dataset_version: int) -> None:
    """Weaken what keeps a bad version out, and see that its rollout still does."""
    with stages.stage("Somebody removes the gates and trains a bad third version"):
        await client.scheduling.ApplyPipeline(careless(pipeline_file.load(PIPELINE)))
        console.print("   no gates; one epoch at a learning rate of 0.000001")
        job = await train_again(client, stages, dataset_version)

    before, bad = job.model_version - 1, job.model_version
    with stages.stage("It gets 10 % of live calls, is judged by their labels, and sent back"):
        samples = load()[:HELD_BACK]
        address = client.targets.address("inference_protocol")
        async with users(address, client.kafka_bootstrap, DATASET, samples) as seen:
            course = await rollouts.follow(client, DATASET, bad)
        asked = seen.answered.total() + len(seen.failures)
        stages.check(f"version {bad} was rolled back", holds=course.state == "ROLLED_BACK")
        stages.check(f"it never had more than {course.steps[-1]} %", holds=course.steps == [10])
        stages.check(
            f"of {asked} calls {seen.answered[str(bad)]} came to it, and {len(seen.failures)} failed",
            holds=seen.answered[str(bad)] > 0 and not seen.failures,
        )
        outcome = await asyncio.to_thread(predict, address, DATASET, samples, "")
        stages.check(
            f"version {', '.join(sorted(outcome.versions))} answers all calls again, accuracy "
            f"{outcome.accuracy:.3f}",
            holds=outcome.versions == {str(before)} and outcome.accuracy >= MIN_ACCURACY,
        )


def careless(pipeline: scheduling.ApplyPipelineRequest) -> scheduling.ApplyPipelineRequest:
    """The pipeline of somebody in a hurry, with rollouts that watch what labels say of live answers."""
    spec = pipeline.spec
    del spec.gates[:]
    spec.training.parameters.update({"epochs": 1, "learning_rate": 1e-6})
    analysis = spec.deployment.rollout.analysis
    analysis.quality.metric = scheduling.RolloutAnalysis.QUALITY_METRIC_ACCURACY
    analysis.quality.max_drop = 0.05
    analysis.longest_hold.FromSeconds(60)
    return pipeline


async def replay_rejected(client: HeadraceClient, stages: Stages) -> None:
    """Correct one of the rejected events, send it again, and find it stored beside the others."""
    with stages.stage("A rejected event is corrected and replayed"):
        request = ingestion.ListRejectedRequest(dataset=DATASET, reason="SCHEMA_VIOLATION")
        refused = (await client.ingestion.ListRejected(request)).rejected
        entry = next(event for event in refused if (event.field, event.rule) == ("mean_radius", "min"))
        console.print(Text(f"   event {entry.id}: {entry.message}", "yellow"))
        await client.ingestion.ReplayRejected(
            ingestion.ReplayRejectedRequest(
                ids=[entry.id], correction=ingestion.Correction(payload=with_true_radius(entry.payload))
            )
        )

        async def dataset() -> ingestion.Dataset:
            return await client.ingestion.GetDataset(ingestion.GetDatasetRequest(name=DATASET))

        found = await until(dataset, lambda d: d.row_count > STORED, "the replayed event's row")
        stages.check(
            f"{found.row_count} samples stored, {STORED + 1} expected", holds=found.row_count == STORED + 1
        )
        kept = await client.ingestion.GetRejected(ingestion.GetRejectedRequest(id=entry.id))
        stages.check(
            f"its entry is {plain(kept)['state']}, with the original bytes",
            holds=kept.state == ingestion.REJECTED_STATE_REPLAYED and kept.payload == entry.payload,
        )


async def show_trace(client: HeadraceClient, stages: Stages, trace_id: str) -> None:
    """Draw the trace from a sample's event to the prediction."""
    with stages.stage("One trace, from a sample's event to the prediction's response"):
        store = TraceStore(client.postgres_dsn)

        async def spans() -> list[waterfall.Span]:
            return await store.spans(trace_id)

        def complete(found: list[waterfall.Span]) -> bool:
            return set(PARTIES) <= {span.service for span in found} and any(
                span.service == "headrace-demo" and not span.parent_span_id for span in found
            )

        try:
            found = await until(spans, complete, "every party's spans")
        except TimeoutError:
            found = await spans()
        console.print(waterfall.table(found))
        counts = Counter(span.service for span in found)
        missing = [party for party in PARTIES if not counts[party]]
        stages.check(
            f"one trace of {len(found)} spans across all five services, Envoy and Triton"
            + (f"; missing: {', '.join(missing)}" if missing else ""),
            holds=not missing,
        )
