"""The composition root: what the service is made of."""

from __future__ import annotations

from datetime import timedelta
from urllib.parse import urlsplit

from headrace.api.inference.v1 import inference_pb2, inference_pb2_grpc
from headrace.inference.consumers import Consumers
from headrace.inference.forgetter import Forgetter
from headrace.inference.grpc_api import InferenceServicer
from headrace.inference.settings import Settings
from headrace.inference.storage.work import PostgresUnitOfWork
from headrace.inference.streams import Streams, channel_to_envoy
from headrace.inference.triton.fleet import triton_fleet
from headrace.inference.triton.repository import ModelRepository
from headrace.inference.use_cases.deployments import Deployments
from headrace.inference.use_cases.erase_predictions import ErasePredictions, ForgetErasures
from headrace.inference.use_cases.production import Production
from headrace.inference.use_cases.reconcile import Reconciler
from headrace.inference.use_cases.route import Router
from headrace.inference.xds.server import ControlPlane, serve_xds
from headrace.inference.xds.wiring import TritonAddress, Wiring
from headrace.messaging.consumer import Consumer
from headrace.messaging.producer import Producer
from headrace.messaging.topics import FEEDBACK, MODEL_VERSIONS, PREDICTIONS, ensure_topics, load_topics
from headrace.objects import ObjectStore
from headrace.postgres import connect
from headrace.postgres.leader import lead
from headrace.postgres.migrations import migrate
from headrace.postgres.outbox import Relay
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.clock import utc_now
from headrace.runtime.runner import Runner
from headrace.runtime.settings import PlatformSettings

NAME = "inference"
SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name


async def build(runner: Runner, settings: Settings, platform: PlatformSettings) -> None:
    """Open, wire and start everything; what is entered last is closed first."""
    client_id = f"headrace-{NAME}"
    address = settings.public_address or settings.envoy_address
    await ensure_topics(platform.kafka_bootstrap, load_topics().values())
    pool = await runner.enter(connect(platform.postgres_dsn, schema=NAME, application_name=client_id))
    await migrate(pool, "headrace.inference.storage")
    producer = await runner.enter(
        Producer(platform.kafka_bootstrap, client_id=client_id, idempotence=platform.kafka_idempotence)
    )
    runner.spawn(Relay(pool, producer).run, "outbox relay")

    work = PostgresUnitOfWork(pool, address)
    repository = ModelRepository(settings.model_repository, ObjectStore.from_uri(platform.store_uri))
    server = await runner.enter(triton_fleet([grpc for grpc, _ in settings.triton_servers], repository))
    control_plane = ControlPlane(
        Wiring(
            listen=settings.envoy_address,
            triton=tuple(TritonAddress(grpc, http) for grpc, http in settings.triton_servers),
            traces=urlsplit(platform.otlp_endpoint).netloc,
            max_request_bytes=settings.max_request_bytes,
            trace_share=settings.trace_share,
            client_rate=settings.client_requests_per_second,
            model_rate=settings.model_requests_per_second,
        )
    )
    router = Router(work, control_plane)

    def changed() -> None:
        reconciler.wake()
        router.wake()

    reconciler = Reconciler(work, server, utc_now, changed=changed)

    await router.route()
    envoy = await runner.enter(channel_to_envoy(settings.envoy_target or settings.envoy_address))
    await runner.enter(
        serve_xds(
            settings.xds_address,
            control_plane,
            streams=Streams(envoy),
            max_request_bytes=settings.max_request_bytes,
        )
    )
    runner.spawn(router.run, "router")
    runner.spawn(lead(pool, "headrace.inference.reconciler", reconciler.run), "reconciler")

    retention = timedelta(hours=settings.erasure_retention_hours)
    runner.spawn(Forgetter(ForgetErasures(work, utc_now, retention)).run, "forgetter of erasures")

    servicer = InferenceServicer(
        Deployments(work, utc_now),
        ErasePredictions(work, utc_now),
        control_plane,
        address=address,
        changed=changed,
    )
    binding = ServiceBinding(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE)
    await runner.enter(serve(settings.grpc_address, [binding], health=runner.health))

    consumers = Consumers(Production(work), changed)
    for topic, handler, in_flight in (
        (MODEL_VERSIONS, consumers.model_versions, 64),
        # Predictions are stored in batches of those in flight.
        (PREDICTIONS, consumers.predictions, 1000),
        (FEEDBACK, consumers.feedback, 64),
    ):
        # A group for each topic: a burst of predictions must not hold up a promotion.
        consumer = await runner.enter(
            Consumer(
                platform.kafka_bootstrap,
                group=f"{settings.consumer_group}.{topic}",
                topics=[topic],
                handler=handler,
                dead_letters=producer,
                client_id=client_id,
                max_in_flight=in_flight,
                session_seconds=platform.kafka_session_seconds,
                ordered=topic != PREDICTIONS,
            )
        )
        runner.spawn(consumer.run, f"consumer of {topic}")
