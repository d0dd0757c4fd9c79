"""Delta aggregated discovery: tells each connected Envoy what changed, and hears whether it took it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from headrace.api.inference.v1 import stamp_pb2_grpc
from headrace.inference.domain.scaling import Scale
from headrace.inference.plain_errors import PlainErrors
from headrace.inference.use_cases import metrics
from headrace.inference.use_cases.ports import Route
from headrace.inference.xds.listener import LISTENER_NAME
from headrace.inference.xds.resources import (
    CLUSTER,
    LISTENER,
    ORDER,
    ROUTES,
    SCOPES,
    fixed_resources,
    shard_resource,
)
from headrace.inference.xds.routes import SHARDS, shard_name, shard_of
from headrace.inference.xds.wiring import Wiring
from headrace.rpc.options import MAX_MESSAGE_BYTES, pings_every

logger = logging.getLogger(__name__)

# deploy/envoy/bootstrap.yaml, connection_keepalive.
_ENVOY_PING_MILLISECONDS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Versioned:
    """A resource and the hash of its bytes."""

    resource: AnyMessage
    version: str

    @classmethod
    def of(cls, resource: AnyMessage) -> Versioned:
        """A resource with its version."""
        return cls(resource, hashlib.sha256(resource.value).hexdigest()[:16])


@dataclass
class Subscription:
    """What one Envoy wants and has of one type.

    `sent` is what it was sent last, by name; `accepted` what it said it took; `pending` what is not
    answered yet, by nonce; `refused` its words about what it did not take, by name; `apart` what is sent by
    itself, for it was refused among others.
    """

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    sent: dict[str, str] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    pending: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    apart: set[str] = field(default_factory=set)


class Peer:
    """One connected Envoy."""

    def __init__(self) -> None:
        self.node = ""
        self.subscriptions: dict[str, Subscription] = {}
        self.wake = asyncio.Event()
        self._nonces = itertools.count(1)

    def hear(self, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        """Take a request: a subscription, an answer to what was sent, or both."""
        if request.node.id:
            self.node = request.node.id
        first = request.type_url not in self.subscriptions
        subscription = self.subscriptions.setdefault(request.type_url, Subscription())
        if first:
            # A first request that names nothing asks for everything of the type.
            subscription.wildcard = not request.resource_names_subscribe
            subscription.sent = dict(request.initial_resource_versions)
            subscription.accepted = dict(request.initial_resource_versions)
        subscription.wildcard |= "*" in request.resource_names_subscribe
        subscription.names |= set(request.resource_names_subscribe) - {"*"}
        # Subscribing again asks for the resource again.
        for name in (*request.resource_names_subscribe, *request.resource_names_unsubscribe):
            if not first:
                subscription.sent.pop(name, None)
        subscription.names -= set(request.resource_names_unsubscribe)
        if request.response_nonce:
            self._answered(subscription, request)
        self.wake.set()

    def _answered(self, subscription: Subscription, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        pending = subscription.pending.pop(request.response_nonce, {})
        if request.HasField("error_detail"):
            message = request.error_detail.message or "no reason given"
            if len(pending) > 1:
                # It does not say which of them it means, and may have taken none: each is sent again alone.
                subscription.apart |= pending.keys()
                for name, version in pending.items():
                    if subscription.sent.get(name) == version:
                        del subscription.sent[name]
            else:
                # Envoy goes on with what it had. It is sent again when it changes.
                subscription.refused.update(dict.fromkeys(pending, message))
            kind = request.type_url.rpartition(".")[2]
            metrics.REJECTIONS.labels(kind).inc()
            logger.error("Envoy %s refused its %s: %s", self.node, kind, message)
        else:
            for name in pending:
                subscription.refused.pop(name, None)
            subscription.accepted.update(pending)

    def delta(
        self, kind: str, wanted: Mapping[str, Versioned]
    ) -> discovery_pb2.DeltaDiscoveryResponse | None:
        """What this Envoy lacks of a type, None where that is nothing."""
        subscription = self.subscriptions.get(kind)
        if subscription is None:
            return None
        if not subscription.wildcard:
            wanted = {name: entry for name, entry in wanted.items() if name in subscription.names}
        changed = [name for name, entry in wanted.items() if subscription.sent.get(name) != entry.version]
        removed = [name for name in subscription.sent if name not in wanted]
        if not changed and not removed:
            return None
        together = [name for name in changed if name not in subscription.apart]
        if together or removed:
            changed = together
        else:
            # The next one goes when this one is answered.
            changed = changed[:1]
            subscription.apart -= {*changed}
        nonce = str(next(self._nonces))
        for name in removed:
            del subscription.sent[name]
        subscription.sent |= {name: wanted[name].version for name in changed}
        subscription.pending[nonce] = {name: wanted[name].version for name in changed}
        metrics.PUSHES.labels(kind.rpartition(".")[2]).inc()
        return discovery_pb2.DeltaDiscoveryResponse(
            type_url=kind,
            nonce=nonce,
            resources=[
                discovery_pb2.Resource(
                    name=name, version=wanted[name].version, resource=wanted[name].resource
                )
                for name in changed
            ],
            removed_resources=removed,
        )

    def problem(self, snapshot: Mapping[str, Mapping[str, Versioned]], routes: str) -> str:
        """Why this Envoy does not serve the snapshot's routes of that name yet; empty where it does."""
        needed = {
            CLUSTER: [*snapshot[CLUSTER]],
            LISTENER: [LISTENER_NAME],
            SCOPES: [routes],
            ROUTES: [routes],
        }
        for kind, names in needed.items():
            subscription = self.subscriptions.get(kind)
            for name in names:
                if subscription is not None and name in subscription.refused:
                    return f"Envoy {self.node} refused its configuration: {subscription.refused[name]}"
                if subscription is None or subscription.accepted.get(name) != snapshot[kind][name].version:
                    return f"Envoy {self.node} has not taken its configuration yet"
        return ""


class ControlPlane:
    """Holds the configuration, and streams it to Envoys.

    Nothing is sent before the first routes are known: an Envoy that runs keeps its last configuration
    while the control plane starts.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._routes: dict[str, Route] = {}
        self._servers = len(wiring.triton)
        # Each shard's part of them.
        self._shards: list[dict[str, Route]] = [{} for _ in range(SHARDS)]
        self._snapshot = {
            kind: {name: Versioned.of(resource) for name, resource in entries.items()}
            for kind, entries in fixed_resources(wiring).items()
        }
        self._routed = False
        self._peers: set[Peer] = set()
        self._change = asyncio.Event()
        self._closed = False

    @property
    def snapshot(self) -> Mapping[str, Mapping[str, Versioned]]:
        """Every resource as it is now, by type and name."""
        return self._snapshot

    def update(self, routes: Mapping[str, Route]) -> None:
        """Route requests so from now on."""
        gone: dict[str, Route | None] = dict.fromkeys(self._routes.keys() - routes.keys())
        self._apply(gone | dict(routes))
        if not self._routed:
            self._routed = True
            self._tell(set(range(SHARDS)))

    def change(self, routes: Mapping[str, Route | None]) -> None:
        """Route requests to these deployments so from now on; to those with None no more."""
        self._apply(routes)

    def _apply(self, routes: Mapping[str, Route | None]) -> None:
        changed = set()
        for name, route in routes.items():
            before = self._routes.get(name)
            # Of ten thousand nearly all are the same objects as before.
            if route is before or route == before:
                continue
            changed.add(name)
            members = self._shards[shard_of(name)]
            if route is None:
                del self._routes[name], members[name]
            else:
                self._routes[name] = members[name] = route
        if changed and self._routed:
            self._tell({shard_of(name) for name in changed})

    def _tell(self, shards: set[int]) -> None:
        for shard in shards:
            resource = shard_resource(shard, self._shards[shard], self._servers)
            self._snapshot[ROUTES][shard_name(shard)] = Versioned.of(resource)
        self._change.set()
        self._change = asyncio.Event()
        self._wake_all()

    def has_one_version(self, deployment: str) -> bool:
        """Whether all requests to a deployment that name no version come to the same one, and only to it."""
        route = self._routes.get(deployment)
        if route is None or route.trial is not None:
            return False
        return sum(weight > 0 for weight in route.weights.values()) == 1

    def most_rows(self, deployment: str) -> int:
        """Rows that one request to a deployment may have; 1 where it is not known."""
        route = self._routes.get(deployment)
        return 1 if route is None else route.most_rows

    @property
    def routes(self) -> Mapping[str, Route]:
        """How requests are routed, by deployment."""
        return self._routes

    def scale(self, deployment: str) -> Scale | None:
        """Where requests find a deployment; None where none has that name."""
        route = self._routes.get(deployment)
        return None if route is None else route.scale

    async def changed(self) -> None:
        """Wait until routes change."""
        await self._change.wait()

    def problem(self, deployment: str, route: Route) -> str:
        """Why requests are not routed so yet, for people; empty where they are."""
        if self._routes.get(deployment) != route:
            return "Envoy is being told of it"
        if not self._peers:
            return "no Envoy is connected"
        name = shard_name(shard_of(deployment))
        return next((problem for peer in self._peers if (problem := peer.problem(self._snapshot, name))), "")

    async def stream(
        self, requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest]
    ) -> AsyncIterator[discovery_pb2.DeltaDiscoveryResponse]:
        """Serve one Envoy until it goes away."""
        peer = Peer()

        async def listen() -> None:
            try:
                async for request in requests:
                    peer.hear(request)
            finally:
                peer.wake.set()

        listener = asyncio.ensure_future(listen())
        self._peers.add(peer)
        metrics.ENVOYS.set(len(self._peers))
        try:
            while not listener.done() and not self._closed:
                # Before looking: what changes from here on is looked at in the next round.
                peer.wake.clear()
                for kind in ORDER:
                    response = peer.delta(kind, self._snapshot[kind]) if self._routed else None
                    if response is not None:
                        yield response
                await peer.wake.wait()
        finally:
            self._peers.discard(peer)
            metrics.ENVOYS.set(len(self._peers))
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    def close(self) -> None:
        """End every stream; Envoys keep what they have."""
        self._closed = True
        self._wake_all()

    def _wake_all(self) -> None:
        for peer in self._peers:
            peer.wake.set()


class DiscoveryServicer(ads_pb2_grpc.AggregatedDiscoveryServiceServicer):  # type: ignore[misc]
    """The protocol's service."""

    def __init__(self, control_plane: ControlPlane) -> None:
        self._control_plane = control_plane

    async def DeltaAggregatedResources(  # noqa: N802 - the protocol's name
        self, request_iterator: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest], context: object
    ) -> AsyncIterator[discovery_pb2.DeltaDiscoveryResponse]:
        """Serve one Envoy."""
        async for response in self._control_plane.stream(request_iterator):
            yield response


@asynccontextmanager
async def serve_xds(
    address: str,
    control_plane: ControlPlane,
    *,
    streams: grpc.GenericRpcHandler | None = None,
    stamp: stamp_pb2_grpc.StampServiceServicer | None = None,
    max_request_bytes: int = MAX_MESSAGE_BYTES,
) -> AsyncIterator[int]:
    """Serve discovery at host:port; yields the port.

    Beside it `streams`, whose requests may be so large, and `stamp`, what its version
    stamp asks. Raises OSError where it cannot be bound.
    """
    server = grpc.aio.server(
        interceptors=[PlainErrors()],
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_send_message_length", -1),
            # What Envoy asks of discovery has to fit, however small requests may be.
            ("grpc.max_receive_message_length", max(MAX_MESSAGE_BYTES, max_request_bytes)),
            *pings_every(_ENVOY_PING_MILLISECONDS),
        ],
    )
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(DiscoveryServicer(control_plane), server)
    if streams is not None:
        server.add_generic_rpc_handlers((streams,))
    if stamp is not None:
        stamp_pb2_grpc.add_StampServiceServicer_to_server(stamp, server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot serve discovery at {address}: is the port taken?") from error
    await server.start()
    try:
        yield port
    finally:
        control_plane.close()
        await server.stop(0.5)
