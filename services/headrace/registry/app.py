"""The composition root: what the service is made of."""

from __future__ import annotations

from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
from headrace.messaging.producer import Producer
from headrace.messaging.topics import ensure_topics, load_topics
from headrace.objects import ObjectStore
from headrace.postgres import connect
from headrace.postgres.migrations import migrate
from headrace.postgres.outbox import Relay
from headrace.registry.grpc_api import RegistryServicer
from headrace.registry.settings import Settings
from headrace.registry.storage.work import PostgresUnitOfWork
from headrace.registry.use_cases.registry import Registry
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.clock import utc_now
from headrace.runtime.runner import Runner
from headrace.runtime.settings import PlatformSettings

NAME = "registry"
SERVICE = registry_pb2.DESCRIPTOR.services_by_name["RegistryService"].full_name


async def build(runner: Runner, settings: Settings, platform: PlatformSettings) -> None:
    """Open, wire and start everything; what is entered last is closed first."""
    client_id = f"headrace-{NAME}"
    await ensure_topics(platform.kafka_bootstrap, load_topics().values())
    pool = await runner.enter(connect(platform.postgres_dsn, schema=NAME, application_name=client_id))
    await migrate(pool, "headrace.registry.storage")
    producer = await runner.enter(
        Producer(platform.kafka_bootstrap, client_id=client_id, idempotence=platform.kafka_idempotence)
    )
    runner.spawn(Relay(pool, producer).run, "outbox relay")
    registry = Registry(PostgresUnitOfWork(pool), ObjectStore.from_uri(platform.store_uri), utc_now)
    binding = ServiceBinding(
        registry_pb2_grpc.add_RegistryServiceServicer_to_server, RegistryServicer(registry), SERVICE
    )
    await runner.enter(serve(settings.grpc_address, [binding], health=runner.health))
