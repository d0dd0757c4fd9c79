"""`headrace.api.scheduling.v1.SchedulingService`: messages to use cases and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from headrace.api.scheduling.v1 import scheduling_pb2 as pb
from headrace.api.scheduling.v1 import scheduling_pb2_grpc
from headrace.rpc import paging
from headrace.rpc.server import ServiceBinding
from headrace.runtime.clock import Clock
from headrace.scheduling.node_streams import NodeStreams
from headrace.scheduling.use_cases.documents import JobRecord
from headrace.scheduling.use_cases.jobs import Jobs
from headrace.scheduling.use_cases.messages import to_job, to_node, to_pipeline, to_retraining, to_why
from headrace.scheduling.use_cases.nodes import Nodes
from headrace.scheduling.use_cases.pipelines import Pipelines
from headrace.scheduling.use_cases.ports import JobPosition
from headrace.scheduling.use_cases.retrain_on_drift import RetrainOnDrift

if TYPE_CHECKING:
    import grpc.aio

    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Context = object

FULL_NAME: Final = "headrace.api.scheduling.v1.SchedulingService"


class SchedulingServicer(scheduling_pb2_grpc.SchedulingServiceServicer):
    """Translation only; errors are HeadraceErrors, and `headrace.rpc` makes statuses of them."""

    def __init__(
        self,
        pipelines: Pipelines,
        jobs: Jobs,
        nodes: Nodes,
        streams: NodeStreams,
        clock: Clock,
        retraining: RetrainOnDrift,
    ) -> None:
        self._pipelines = pipelines
        self._jobs = jobs
        self._nodes = nodes
        self._streams = streams
        self._clock = clock
        self._retraining = retraining

    async def ApplyPipeline(self, request: pb.ApplyPipelineRequest, context: Context) -> pb.Pipeline:
        """See the proto."""
        return to_pipeline(await self._pipelines.apply(request.name, request.spec))

    async def GetPipeline(self, request: pb.GetPipelineRequest, context: Context) -> pb.Pipeline:
        """See the proto."""
        pipeline = to_pipeline(await self._pipelines.get(request.name))
        pipeline.retrainings.extend(map(to_retraining, await self._retraining.of_pipeline(request.name)))
        return pipeline

    async def ListPipelines(
        self, request: pb.ListPipelinesRequest, context: Context
    ) -> pb.ListPipelinesResponse:
        """See the proto."""
        size = paging.page_size(request.page_size)
        position = paging.decode_token(request.page_token, str)
        found = await self._pipelines.list(str(position[0]) if position else "", size + 1)
        page, token = paging.cut(found, size, lambda pipeline: (pipeline.name,))
        return pb.ListPipelinesResponse(pipelines=map(to_pipeline, page), next_page_token=token)

    async def SubmitJob(self, request: pb.SubmitJobRequest, context: Context) -> pb.Job:
        """See the proto."""
        record = await self._jobs.submit(request.pipeline, request.dataset_version, request.request_id)
        return to_job(record)

    async def GetJob(self, request: pb.GetJobRequest, context: Context) -> pb.Job:
        """See the proto."""
        return to_job(await self._jobs.get(request.id))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Context) -> pb.ListJobsResponse:
        """See the proto."""
        size = paging.page_size(request.page_size)
        position = paging.decode_token(request.page_token, str, str)
        after = _position(str(position[0]), str(position[1])) if position else None
        found = await self._jobs.list(request.pipeline, after, size + 1)
        page, token = paging.cut(found, size, _page_end)
        return pb.ListJobsResponse(jobs=map(to_job, page), next_page_token=token)

    async def WatchJob(self, request: pb.WatchJobRequest, context: Context) -> AsyncIterator[pb.Job]:
        """See the proto."""
        async for record in self._jobs.watch(request.id):
            yield to_job(record)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Context) -> pb.Job:
        """See the proto."""
        return to_job(await self._jobs.cancel(request.id))

    async def WhyPending(self, request: pb.WhyPendingRequest, context: Context) -> pb.WhyPendingResponse:
        """See the proto."""
        return to_why(await self._jobs.why(request.id))

    async def ListNodes(self, request: pb.ListNodesRequest, context: Context) -> pb.ListNodesResponse:
        """See the proto."""
        now = self._clock()
        return pb.ListNodesResponse(
            nodes=[
                to_node(summary.node, summary.allocated, summary.jobs, now)
                for summary in await self._nodes.list()
            ]
        )

    async def AttachNode(
        self, requests: AsyncIterator[pb.AttachNodeRequest], context: Context
    ) -> AsyncIterator[pb.AttachNodeResponse]:
        """See the proto."""
        async for response in self._streams.serve(requests):
            yield response


def binding(servicer: SchedulingServicer) -> ServiceBinding:
    """The service, ready to be served."""
    return ServiceBinding(scheduling_pb2_grpc.add_SchedulingServiceServicer_to_server, servicer, FULL_NAME)


def _page_end(record: JobRecord) -> paging.Position:
    return (record.job.create_time.isoformat(), record.job.id)


def _position(create_time: str, job_id: str) -> JobPosition:
    return JobPosition(datetime.fromisoformat(create_time), job_id)
