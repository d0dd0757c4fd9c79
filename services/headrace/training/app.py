"""The composition root: what the service is made of."""

from __future__ import annotations

from headrace.api.registry.v1 import registry_pb2_grpc
from headrace.api.scheduling.v1 import scheduling_pb2_grpc
from headrace.api.training.v1 import training_pb2, training_pb2_grpc
from headrace.messaging.producer import Producer
from headrace.messaging.topics import ensure_topics, load_topics
from headrace.postgres import connect
from headrace.postgres.migrations import migrate
from headrace.postgres.outbox import Relay
from headrace.rpc.client import channel
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.clock import utc_now
from headrace.runtime.runner import Runner
from headrace.runtime.settings import PlatformSettings
from headrace.training.attachment import Attachment
from headrace.training.capacity import detect
from headrace.training.executor import LocalExecutor
from headrace.training.grpc_api import TrainingServicer
from headrace.training.registrar import RegistryRegistrar
from headrace.training.settings import Settings
from headrace.training.storage.repository import RunRepository
from headrace.training.use_cases.agent import Agent

NAME = "training"
SERVICE = training_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name


async def build(runner: Runner, settings: Settings, platform: PlatformSettings) -> None:
    """Open, wire and start everything; what is entered last is closed first."""
    client_id = f"headrace-{NAME}-{settings.node}"
    await ensure_topics(platform.kafka_bootstrap, load_topics().values())
    pool = await runner.enter(connect(platform.postgres_dsn, schema=NAME, application_name=client_id))
    await migrate(pool, "headrace.training.storage")
    producer = await runner.enter(
        Producer(platform.kafka_bootstrap, client_id=client_id, idempotence=platform.kafka_idempotence)
    )
    runner.spawn(Relay(pool, producer).run, "outbox relay")

    runs = RunRepository(pool)
    executor = LocalExecutor(settings.work_folder, platform.store_uri, settings.in_memory_bytes)
    registry = await runner.enter(channel(settings.registry_target))
    scheduling = await runner.enter(channel(settings.scheduling_target))
    registrar = RegistryRegistrar(registry_pb2_grpc.RegistryServiceStub(registry))
    agent = Agent(settings.node, runs, executor, registrar, utc_now)
    await agent.recover()

    binding = ServiceBinding(
        training_pb2_grpc.add_TrainingServiceServicer_to_server,
        TrainingServicer(runs, executor.log),
        SERVICE,
    )
    await runner.enter(serve(settings.grpc_address, [binding], health=runner.health))

    attachment = Attachment(
        scheduling_pb2_grpc.SchedulingServiceStub(scheduling),
        agent,
        settings.node,
        detect(settings.cpu, settings.memory_bytes, settings.gpu),
    )
    runner.on_stop(agent.close, "runs")
    runner.spawn(attachment.run, "attachment to scheduling")
