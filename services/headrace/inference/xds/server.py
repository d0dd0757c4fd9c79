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

from headrace.inference.use_cases import metrics
from headrace.inference.use_cases.ports import Route
from headrace.inference.xds.resources import (
    CLUSTER,
    LISTENER,
    LISTENER_NAME,
    ROUTES,
    ROUTES_NAME,
    Wiring,
    resources,
)
from headrace.rpc.options import pings_every

logger = logging.getLogger(__name__)

# deploy/envoy/bootstrap.yaml, connection_keepalive.
_ENVOY_PING_MILLISECONDS: Final = 10_000

# Make before break: clusters exist before routes name them.
ORDER = (CLUSTER, LISTENER, ROUTES)


@dataclass(frozen=True, slots=True)
class Versioned:
    """A resource and the hash of its bytes."""

    resource: AnyMessage
    version: str


@dataclass
class Subscription:
    """What one Envoy wants and has of one type.

    `sent` is what it was sent last, by name; `accepted` what it said it took; `pending` what is not
    answered yet, by nonce; `refusal` its words about the last answer, where it took it not.
    """

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    sent: dict[str, str] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    pending: dict[str, dict[str, str]] = field(default_factory=dict)
    refusal: str = ""


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
            # Refused: Envoy goes on with what it had. It is sent again when it changes.
            subscription.refusal = request.error_detail.message or "no reason given"
            kind = request.type_url.rpartition(".")[2]
            metrics.REJECTIONS.labels(kind).inc()
            logger.error("Envoy %s refused its %s: %s", self.node, kind, subscription.refusal)
        else:
            subscription.refusal = ""
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
        nonce = str(next(self._nonces))
        subscription.sent = {name: entry.version for name, entry in wanted.items()}
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

    def problem(self, snapshot: Mapping[str, Mapping[str, Versioned]]) -> str:
        """Why this Envoy does not serve the snapshot yet; empty where it does."""
        for kind in ORDER:
            subscription = self.subscriptions.get(kind)
            if subscription is not None and subscription.refusal:
                return f"Envoy {self.node} refused its configuration: {subscription.refusal}"
        for kind, name in ((LISTENER, LISTENER_NAME), (ROUTES, ROUTES_NAME)):
            subscription = self.subscriptions.get(kind)
            if subscription is None or subscription.accepted.get(name) != snapshot[kind][name].version:
                return f"Envoy {self.node} has not taken its configuration yet"
        return ""


class ControlPlane:
    """Holds the configuration, and streams it to Envoys.

    Nothing is sent before the first routes are known: an Envoy that runs keeps its last configuration
    while the control plane starts.
    """

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._routes: Mapping[str, Route] | None = None
        self._snapshot: Mapping[str, Mapping[str, Versioned]] = {}
        self._peers: set[Peer] = set()
        self._closed = False

    def update(self, routes: Mapping[str, Route]) -> None:
        """Route requests so from now on."""
        if routes == self._routes:
            return
        self._routes = dict(routes)
        self._snapshot = {
            kind: {
                name: Versioned(resource, hashlib.sha256(resource.value).hexdigest()[:16])
                for name, resource in entries.items()
            }
            for kind, entries in resources(self._wiring, routes).items()
        }
        self._wake_all()

    def has_one_version(self, deployment: str) -> bool:
        """Whether all requests to a deployment that name no version come to the same one."""
        route = (self._routes or {}).get(deployment)
        return route is not None and sum(weight > 0 for weight in route.weights.values()) == 1

    def problem(self, deployment: str, traffic: Mapping[int, int]) -> str:
        """Why requests are not routed by these weights yet, for people; empty where they are."""
        route = (self._routes or {}).get(deployment)
        if route is None or dict(route.weights) != dict(traffic):
            return "Envoy is being told of its weights"
        if not self._peers:
            return "no Envoy is connected"
        return next((problem for peer in self._peers if (problem := peer.problem(self._snapshot))), "")

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
                    response = peer.delta(kind, self._snapshot.get(kind, {})) if self._snapshot else None
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
async def serve_xds(address: str, control_plane: ControlPlane) -> AsyncIterator[int]:
    """Serve discovery at host:port; yields the port. Raises OSError where it cannot be bound."""
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 0),
            ("grpc.max_send_message_length", -1),
            *pings_every(_ENVOY_PING_MILLISECONDS),
        ]
    )
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(DiscoveryServicer(control_plane), server)
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
