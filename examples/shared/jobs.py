"""A training job as it goes on, and the version that it made."""

from __future__ import annotations

from examples.shared.stages import Stages, console
from examples.shared.waiting import DEADLINE_SECONDS, within
from rich.progress import BarColumn, Progress, TextColumn

from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
from headrace.cli.plain import plain
from headrace.client import HeadraceClient


async def follow(client: HeadraceClient, job_id: str, seconds: float = DEADLINE_SECONDS) -> scheduling.Job:
    """Show a job's progress until it has ended. Raises TimeoutError saying why it has not."""
    try:
        async with within(seconds, f"job {job_id} to end"):
            return await _show(client, job_id)
    except TimeoutError as error:
        # A job that fits on no node waits for ever, and only scheduling knows.
        why = await client.scheduling.WhyPending(scheduling.WhyPendingRequest(id=job_id))
        raise TimeoutError(f"{error}: {why.message}") from None


async def _show(client: HeadraceClient, job_id: str) -> scheduling.Job:
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


async def succeeded(client: HeadraceClient, stages: Stages, job_id: str) -> scheduling.Job:
    """Follow a job; the story cannot go on without its model version."""
    console.print(f"   job {job_id}")
    job = await follow(client, job_id)
    console.print(f"   {plain(job)['state']} on node {job.node}: {job.message}")
    if job.state != scheduling.JOB_STATE_SUCCEEDED:
        raise RuntimeError(f"job {job.id}: {job.message}")
    stages.check("the job succeeded", holds=True)
    return job


async def promoted(client: HeadraceClient, stages: Stages, job: scheduling.Job) -> registry.ModelVersion:
    """The version that the job made, and what its gates said; a story cannot go on without it."""
    version = await client.registry.GetModelVersion(
        registry.GetModelVersionRequest(model=job.pipeline, version=job.model_version)
    )
    lineage = version.lineage
    console.print(
        f"   {version.model} version {version.version} from dataset version "
        f"{lineage.dataset_version.version}, job {lineage.job}, recipe {lineage.recipe}"
    )
    for result in version.gate_results:
        stages.check(f"gate: {result.message}", holds=result.passed)
    if version.state != registry.MODEL_VERSION_STATE_PROMOTED:
        raise RuntimeError(f"version {version.version} is {plain(version)['state']}")
    stages.check("the version is promoted", holds=True)
    return version
