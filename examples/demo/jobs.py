"""A training job as it goes on."""

from __future__ import annotations

from rich.progress import BarColumn, Progress, TextColumn
from stages import console
from waiting import DEADLINE_SECONDS, within

from headrace.api.scheduling.v1 import scheduling_pb2 as scheduling
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
