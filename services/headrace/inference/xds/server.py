"""Delta aggregated discovery: tells each connected Envoy what changed, and hears whether it took it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc, discovery_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from headrace.inference.use_cases.ports import Route
from headrace.inference.xds.resources import CLUSTER, LISTENER, ROUTES, Addresses, resources

logger = logging.getLogger(__name__)

# Make before break: clusters exist before routes name them.
ORDER = (CLUSTER, LISTENER, ROUTES)


@dataclass(frozen=True, slots=True)
class Versioned:
    """A resource and the hash of its bytes."""

    resource: AnyMessage
    version: str


Snapshot = Mapping[str, Mapping[str, Versioned]]


@dataclass
class Subscription:
    """What one Envoy wants and has of one type."""

    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)


class ControlPlane:
    """Holds the configuration, and streams it to Envoys.

    Nothing is sent before the first routes are known: an Envoy that runs keeps its last configuration
    while the control plane starts.
    """

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._routes: Mapping[str, Route] | None = None
        self._snapshot: Snapshot = {}
        self._changed = asyncio.Condition()
        self._generation = 0
        self._notifying: set[asyncio.Task[None]] = set()
        self.rejection = ""

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
            for kind, entries in resources(self._addresses, routes).items()
        }
        self._generation += 1
        task = asyncio.ensure_future(self._notify())
        self._notifying.add(task)
        task.add_done_callback(self._notifying.discard)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def stream(
        self, requests: AsyncIterator[discovery_pb2.DeltaDiscoveryRequest]
    ) -> AsyncIterator[discovery_pb2.DeltaDiscoveryResponse]:
        """Serve one Envoy until it goes away."""
        subscriptions: dict[str, Subscription] = {}
        heard = asyncio.Event()
        nonces = itertools.count(1)

        async def listen() -> None:
            async for request in requests:
                self._hear(subscriptions, request)
                heard.set()
                await self._notify()

        listener = asyncio.ensure_future(listen())
        try:
            while not listener.done():
                heard.clear()
                generation = self._generation
                for kind in ORDER:
                    response = self._delta(kind, subscriptions.get(kind))
                    if response is not None:
                        response.nonce = str(next(nonces))
                        yield response
                async with self._changed:
                    if self._generation == generation and not heard.is_set() and not listener.done():
                        waiting = asyncio.ensure_future(self._changed.wait())
                        await asyncio.wait([waiting, listener], return_when=asyncio.FIRST_COMPLETED)
                        if not waiting.done():
                            waiting.cancel()
                            await asyncio.gather(waiting, return_exceptions=True)
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    def _hear(
        self, subscriptions: dict[str, Subscription], request: discovery_pb2.DeltaDiscoveryRequest
    ) -> None:
        first = request.type_url not in subscriptions
        subscription = subscriptions.setdefault(request.type_url, Subscription())
        if first:
            # A first request that names nothing asks for everything of the type.
            subscription.wildcard = not request.resource_names_subscribe
            subscription.known = dict(request.initial_resource_versions)
        subscription.wildcard |= "*" in request.resource_names_subscribe
        subscription.names |= set(request.resource_names_subscribe) - {"*"}
        subscription.names -= set(request.resource_names_unsubscribe)
        for name in request.resource_names_unsubscribe:
            subscription.known.pop(name, None)
        if request.response_nonce and request.HasField("error_detail"):
            # Refused: Envoy goes on with what it had. It is not sent again before it changes.
            self.rejection = request.error_detail.message
            logger.error("Envoy refused %s: %s", request.type_url.rpartition(".")[2], self.rejection)
        elif request.response_nonce and request.type_url == ROUTES:
            self.rejection = ""

    def _delta(
        self, kind: str, subscription: Subscription | None
    ) -> discovery_pb2.DeltaDiscoveryResponse | None:
        """What the Envoy lacks of a type, None where that is nothing."""
        if subscription is None or self._routes is None:
            return None
        wanted = {
            name: entry
            for name, entry in self._snapshot.get(kind, {}).items()
            if subscription.wildcard or name in subscription.names
        }
        changed = [name for name, entry in wanted.items() if subscription.known.get(name) != entry.version]
        removed = [name for name in subscription.known if name not in wanted]
        if not changed and not removed:
            return None
        subscription.known = {name: entry.version for name, entry in wanted.items()}
        return discovery_pb2.DeltaDiscoveryResponse(
            type_url=kind,
            system_version_info=str(self._generation),
            resources=[
                discovery_pb2.Resource(
                    name=name, version=wanted[name].version, resource=wanted[name].resource
                )
                for name in changed
            ],
            removed_resources=removed,
        )


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
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    ads_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server(DiscoveryServicer(control_plane), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot serve discovery at {address}: is the port taken?") from error
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0.5)
