"""From events to predictions: the demo's story, against a running stack."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from aiokafka import AIOKafkaConsumer
from opentelemetry import trace
from predictions import predict
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text
from samples import (
    DATASET,
    FEEDBACK_TOPIC,
    SAMPLES_TOPIC,
    break_five,
    feedback_records,
    load,
    publish,
    sample_record,
)
from stages import Stages, console

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.api.ingestion.v1 import ingestion_pb2 as ingestion
from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.cli import waterfall
from headrace.cli.plain import plain
from headrace.cli.traces import TraceStore
from headrace.client import HeadraceClient, pipeline_file
from headrace.messaging.topics import REJECTED_SAMPLES
from headrace.telemetry import tracing

PIPELINE = Path(__file__).parents[1] / "breast-cancer" / "pipeline.yaml"
STORED = 464
REJECTED = 5
MIN_ACCURACY = 0.93
DEADLINE_SECONDS = 120.0
POLL_SECONDS = 0.1

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

T = TypeVar("T")


async def until(ask: Callable[[], Awaitable[T]], enough: Callable[[T], bool], what: str) -> T:
    """Ask again and again until the answer is enough. Raises TimeoutError saying what was waited for."""
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not enough(answer := await ask()):
                await asyncio.sleep(POLL_SECONDS)
            return answer
    except TimeoutError:
        raise TimeoutError(f"waited {DEADLINE_SECONDS:.0f} s for {what}") from None


async def tell(client: HeadraceClient, stages: Stages) -> None:
    """Apply, publish, train, deploy, predict, give feedback, and show the trace of it all."""
    with tracing.span("demo", parent=""):
        traceparent = tracing.current_traceparent()
        await apply_pipeline(client, stages)
        await send_samples(client, stages, traceparent)
        await train(client, stages)
        await roll_out(client, stages)
        await use(client, stages, traceparent)
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
        learned_from, _ = load()
        records = break_five([sample_record(sample, traceparent) for sample in learned_from])
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
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(seen) < REJECTED:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    seen |= {dict(record.headers)["ce_id"] for record in records}
    finally:
        await consumer.stop()
    return len(seen)


async def train(client: HeadraceClient, stages: Stages) -> None:
    """Follow the job that the dataset version started."""
    with stages.stage("Scheduling places a training job; its node trains, evaluates and exports to ONNX"):
        request = scheduling.ListJobsRequest(pipeline=DATASET)

        async def jobs() -> list[scheduling.Job]:
            return list((await client.scheduling.ListJobs(request)).jobs)

        job = (await until(jobs, bool, "a training job"))[0]
        console.print(f"   job {job.id}")
        job = await follow(client, job.id)
        succeeded = job.state == scheduling.JOB_STATE_SUCCEEDED
        console.print(f"   {plain(job)['state']} on node {job.node}: {job.message}")
        stages.check("the job succeeded", holds=succeeded)
        if not succeeded:
            raise RuntimeError(f"job {job.id}: {job.message}")

    with stages.stage("The registry records the version with its lineage and judges its gates"):
        version = await client.registry.GetModelVersion(
            registry.GetModelVersionRequest(model=DATASET, version=job.model_version)
        )
        lineage = version.lineage
        console.print(
            f"   {version.model} version {version.version} from dataset version "
            f"{lineage.dataset_version.version}, job {lineage.job}, recipe {lineage.recipe}"
        )
        for result in version.gate_results:
            stages.check(f"gate: {result.message}", holds=result.passed)
        stages.check("the version is promoted", holds=version.state == registry.MODEL_VERSION_STATE_PROMOTED)


async def follow(client: HeadraceClient, job_id: str) -> scheduling.Job:
    """Show a job's progress until it has ended."""
    columns = (TextColumn("   {task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"))
    last = -1
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("training", total=None, detail="")
        async for job in client.scheduling.WatchJob(scheduling.WatchJobRequest(id=job_id)):
            seen = job.progress
            detail = ""
            if seen.epochs:
                left = seen.remaining.ToTimedelta().total_seconds()
                detail = f"epoch {seen.epoch}/{seen.epochs}  loss {seen.loss:.4f}  {left:.1f} s left"
                # Without a terminal there is no bar: say it in lines, now and then.
                if seen.epoch and not console.is_terminal and seen.epoch // 10 != last:
                    last = seen.epoch // 10
                    console.print(f"   {detail}")
            progress.update(bar, completed=seen.epoch, total=seen.epochs or None, detail=detail)
    return job


async def roll_out(client: HeadraceClient, stages: Stages) -> None:
    """Watch traffic move."""
    with stages.stage("Inference rolls the version out on Triton behind Envoy, in steps"):
        shown = ""
        async with asyncio.timeout(DEADLINE_SECONDS):
            async for deployment in client.inference.WatchDeployment(
                inference.WatchDeploymentRequest(name=DATASET)
            ):
                if not deployment.HasField("rollout"):
                    continue
                state = str(plain(deployment.rollout)["state"])
                line = f"   {state}: {deployment.rollout.message}"
                if line != shown:
                    console.print(line)
                    shown = line
                if state in {"FAILED", "ROLLED_BACK"} or (state == "SUCCEEDED" and deployment.ready):
                    break
        stages.check("the rollout succeeded", holds=state == "SUCCEEDED")


async def use(client: HeadraceClient, stages: Stages, traceparent: str) -> None:
    """Predict with a stock client, and send the true labels back."""
    with stages.stage("A stock tritonclient predicts the 100 held-back samples through Envoy"):
        _, held_back = load()
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
