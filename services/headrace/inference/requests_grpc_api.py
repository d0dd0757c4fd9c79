"""RPCs about asynchronous requests to use cases and back."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from headrace.api.inference.v1 import requests_pb2 as api
from headrace.api.inference.v1 import requests_pb2_grpc
from headrace.inference.domain.requests import Failure, RequestState
from headrace.inference.use_cases.manage_requests import ManageRequests
from headrace.inference.use_cases.request_ports import StoredRequest
from headrace.rpc import paging
from headrace.rpc.convert import from_duration, to_timestamp


class RequestServicer(requests_pb2_grpc.RequestServiceServicer):
    """Requests that came over Kafka; the proto says what each method does."""

    def __init__(self, requests: ManageRequests) -> None:
        self._requests = requests

    async def GetRequest(self, request: api.GetRequestRequest, context: Any) -> api.InferenceRequest:
        """One request."""
        return request_message(await self._requests.get(request.id, request.source))

    async def ListRequests(self, request: api.ListRequestsRequest, context: Any) -> api.ListRequestsResponse:
        """Requests, newest first."""
        size = paging.page_size(request.page_size)
        position = paging.decode_token(request.page_token, str, str)
        before = datetime.fromisoformat(str(position[0])) if position else None
        before_id = str(position[1]) if position else ""
        state = (
            RequestState(api.RequestState.Name(request.state).removeprefix("REQUEST_STATE_"))
            if request.state
            else None
        )
        rows = await self._requests.list_requests(request.deployment, state, before, before_id, size + 1)
        page, token = paging.cut(rows, size, lambda row: (row.receive_time.isoformat(), row.key.id))
        return api.ListRequestsResponse(requests=map(request_message, page), next_page_token=token)

    async def CancelRequest(self, request: api.CancelRequestRequest, context: Any) -> api.InferenceRequest:
        """End one that waits."""
        return request_message(await self._requests.cancel(request.id, request.source))

    async def ReplayRequest(self, request: api.ReplayRequestRequest, context: Any) -> api.InferenceRequest:
        """Publish an answer again, or run one anew."""
        timeout = from_duration(request.timeout) if request.HasField("timeout") else None
        return request_message(await self._requests.replay(request.id, request.source, timeout))


def request_message(stored: StoredRequest) -> api.InferenceRequest:
    """A request."""
    failure = stored.failure or Failure("", "", "")
    return api.InferenceRequest(
        id=stored.key.id,
        source=stored.key.source,
        deployment=stored.deployment,
        state=api.RequestState.Value(f"REQUEST_STATE_{stored.state}"),
        priority=stored.priority,
        deadline=to_timestamp(stored.deadline),
        attempts=stored.attempts,
        reply_topic=stored.reply_topic,
        version=stored.version,
        code=failure.code,
        reason=failure.reason,
        message=failure.message,
        replays=stored.replays,
        receive_time=to_timestamp(stored.receive_time),
        end_time=to_timestamp(stored.end_time),
        traceparent=stored.traceparent,
    )
