"""The composition root: what the service is made of."""

from __future__ import annotations

import os
from datetime import timedelta
from urllib.parse import urlsplit

from headrace.api.inference.v1 import (
    drift_pb2,
    drift_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    requests_pb2,
    requests_pb2_grpc,
    tuning_pb2,
    tuning_pb2_grpc,
)
from headrace.inference.consumers import Consumers
from headrace.inference.data_plane_calls import data_plane_client
from headrace.inference.drift_grpc_api import DriftServicer
from headrace.inference.explainer.pool import explainer_pool
from headrace.inference.forgetter import Forgetter
from headrace.inference.grpc_api import InferenceServicer
from headrace.inference.inference_forms import InferenceForms
from headrace.inference.load.process import LoadProcesses
from headrace.inference.log_tables import log_tables
from headrace.inference.merged_calls import MergedCalls
from headrace.inference.payloads import StoredPayloads
from headrace.inference.profile_calls import profile_client
from headrace.inference.request_consumer import PublishedResponses, RequestConsumer
from headrace.inference.requests_grpc_api import RequestServicer
from headrace.inference.settings import Settings
from headrace.inference.stamp_grpc_api import StampServicer
from headrace.inference.storage.changes import tell_of_changes
from headrace.inference.storage.drift import PostgresDrift
from headrace.inference.storage.requests import PostgresRequests
from headrace.inference.storage.tuning_lock import PostgresTuningLock
from headrace.inference.storage.work import PostgresUnitOfWork
from headrace.inference.streams import Streams, channel_to_envoy
from headrace.inference.table_consumer import PublishedRows, TableConsumer
from headrace.inference.training_profiles import training_profiles
from headrace.inference.triton.copies import tuning_copies
from headrace.inference.triton.fleet import triton_fleet
from headrace.inference.triton.repository import ModelRepository
from headrace.inference.tuning_grpc_api import TuningServicer
from headrace.inference.use_cases.answer_requests import AnswerRequests
from headrace.inference.use_cases.deployments import Deployments
from headrace.inference.use_cases.erase_predictions import ErasePredictions, ForgetErasures
from headrace.inference.use_cases.explain import Explain
from headrace.inference.use_cases.forget_predictions import ForgetPredictions
from headrace.inference.use_cases.log_table import LogTable, until_named
from headrace.inference.use_cases.manage_requests import ForgetRequests, ManageRequests
from headrace.inference.use_cases.measure_quality import MeasureQuality
from headrace.inference.use_cases.production import MAX_BATCH, Production
from headrace.inference.use_cases.reconcile import Reconciler
from headrace.inference.use_cases.responses import ResponseWriter
from headrace.inference.use_cases.route import Router
from headrace.inference.use_cases.scale import Scaler
from headrace.inference.use_cases.submit_feedback import SubmitFeedback
from headrace.inference.use_cases.tune import StaleCopies, TuneDeployment
from headrace.inference.use_cases.wake import WakeDeployment
from headrace.inference.use_cases.watch_drift import ReportDrift, WatchDrift
from headrace.inference.xds.rate_limits import OVER_KAFKA
from headrace.inference.xds.server import ControlPlane, serve_xds
from headrace.inference.xds.wiring import Patience, TritonAddress, Wiring
from headrace.messaging.client import SHORT_WAIT_MS, WAIT_MS
from headrace.messaging.consumer import Consumer, Handler, HandlerOfMany
from headrace.messaging.producer import Producer
from headrace.messaging.topics import (
    FEEDBACK,
    INFERENCE_REQUESTS,
    MODEL_VERSIONS,
    PREDICTIONS,
    ensure_topics,
    load_topics,
)
from headrace.objects import ObjectStore
from headrace.postgres import connect
from headrace.postgres.leader import lead
from headrace.postgres.migrations import migrate
from headrace.postgres.outbox import Relay
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.clock import utc_now
from headrace.runtime.ids import new_id
from headrace.runtime.runner import Runner
from headrace.runtime.settings import PlatformSettings

NAME = "inference"
SERVICE = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name
REQUEST_SERVICE = requests_pb2.DESCRIPTOR.services_by_name["RequestService"].full_name
DRIFT_SERVICE = drift_pb2.DESCRIPTOR.services_by_name["DriftService"].full_name
TUNING_SERVICE = tuning_pb2.DESCRIPTOR.services_by_name["TuningService"].full_name
# Instances to try where nobody says how many.
MOST_CORES_TRIED = 4
# In work at once: each is of as many requests as a model answers at once, and up to 128 KiB.
PREDICTION_EVENTS = 64


async def build(runner: Runner, settings: Settings, platform: PlatformSettings) -> None:
    """Open, wire and start everything; what is entered last is closed first."""
    client_id = f"headrace-{NAME}"
    address = settings.public_address or settings.envoy_address
    envoy_target = settings.envoy_target or settings.envoy_address
    await ensure_topics(platform.kafka_bootstrap, load_topics().values())
    pool = await runner.enter(
        connect(
            platform.postgres_dsn,
            schema=NAME,
            application_name=client_id,
            # Four leaders and the listener keep one each.
            max_size=12,
            plan_anew=True,
        )
    )
    await migrate(pool, "headrace.inference.storage")
    producer = await runner.enter(
        Producer(platform.kafka_bootstrap, client_id=client_id, idempotence=platform.kafka_idempotence)
    )
    runner.spawn(Relay(pool, producer).run, "outbox relay")

    work = PostgresUnitOfWork(pool, address)
    store = ObjectStore.from_uri(platform.store_uri)
    repository = ModelRepository(settings.model_repository, store)
    server = await runner.enter(triton_fleet([grpc for grpc, _ in settings.triton_servers], repository))
    patience = Patience(request=settings.max_request_seconds)
    control_plane = ControlPlane(
        Wiring(
            listen=settings.envoy_address,
            triton=tuple(TritonAddress(grpc, http) for grpc, http in settings.triton_servers),
            traces=urlsplit(platform.otlp_endpoint).netloc,
            max_request_bytes=settings.max_request_bytes,
            trace_share=settings.trace_share,
            client_rate=settings.client_requests_per_second,
            model_rate=settings.model_requests_per_second,
            patience=patience,
        )
    )
    router = Router(work, control_plane)

    def changed() -> None:
        reconciler.wake()
        scaler.wake()

    reconciler = Reconciler(work, server, utc_now, changed=changed)
    scaler = Scaler(work, server, changed=changed, memory=settings.triton_memory_bytes)
    wake = WakeDeployment(work, control_plane, demanded=scaler.wake, seconds=settings.wake_seconds)

    await router.route()
    envoy = await runner.enter(channel_to_envoy(envoy_target))
    await runner.enter(
        serve_xds(
            settings.xds_address,
            control_plane,
            streams=Streams(envoy, control_plane, reading_seconds=patience.reading).handler(),
            stamp=StampServicer(wake, control_plane, servers=len(settings.triton_servers)),
            max_request_bytes=settings.max_request_bytes,
        )
    )
    runner.spawn(router.run, "router")
    runner.spawn(tell_of_changes(pool, router), "listener to changes")
    runner.spawn(lead(pool, "headrace.inference.reconciler", reconciler.run), "reconciler")
    runner.spawn(lead(pool, "headrace.inference.scaler", scaler.run), "scaler")

    retention = timedelta(hours=settings.erasure_retention_hours)
    erasures = Forgetter("erasures", ForgetErasures(work, utc_now, retention))
    runner.spawn(erasures.run, "forgetter of erasures")

    logged = timedelta(hours=settings.prediction_retention_hours)
    predictions = Forgetter("predictions", ForgetPredictions(work, logged))
    runner.spawn(predictions.run, "forgetter of predictions")

    requests = PostgresRequests(pool)
    kept = timedelta(hours=settings.request_retention_hours)
    runner.spawn(Forgetter("requests", ForgetRequests(requests, utc_now, kept)).run, "forgetter of requests")
    forms = InferenceForms()
    payloads = StoredPayloads(store, max_bytes=settings.max_request_bytes)
    responses = PublishedResponses(producer)
    calls = await runner.enter(
        data_plane_client(envoy_target, client=OVER_KAFKA if settings.client_requests_per_second else "")
    )
    answer = AnswerRequests(
        requests,
        MergedCalls(
            calls,
            # Where a model's requests are limited each is one: Envoy counts calls.
            most_rows=1 if settings.model_requests_per_second else settings.request_rows_merged,
            rows_of=control_plane.most_rows,
            mergeable=control_plane.has_one_version,
        ),
        forms,
        payloads,
        responses,
        utc_now,
        most_at_once=settings.requests_at_once,
        max_request_bytes=settings.max_request_bytes,
    )
    runner.spawn(answer.look_for_ends, "look for requests that ended elsewhere")
    manage = ManageRequests(requests, ResponseWriter(forms, payloads), responses, utc_now, answer.interrupt)

    drift = PostgresDrift(pool)
    profiles = await runner.enter(profile_client(settings.ingestion_target))
    watch = WatchDrift(work, drift, profiles, utc_now, new_id)
    runner.spawn(lead(pool, "headrace.inference.drift", watch.run), "watch for drift")

    tables = await runner.enter(log_tables(settings.ingestion_target))
    deployments = Deployments(work, utc_now, tables)
    explainers = await runner.enter(explainer_pool(store, settings))
    runner.spawn(explainers.close_idle, "closer of idle explainers")
    explain = Explain(
        work,
        await runner.enter(training_profiles(settings.ingestion_target)),
        explainers,
        max_rows=settings.explain_rows,
        max_evaluations=settings.explain_evaluations,
    )

    servicer = InferenceServicer(
        deployments,
        ErasePredictions(work, utc_now),
        control_plane,
        explain,
        MeasureQuality(work),
        SubmitFeedback(work, utc_now),
        address=address,
        changed=changed,
    )
    live = [grpc for grpc, _ in settings.triton_servers]
    tuned = settings.tuning_triton_grpc or live[0]
    copies = await runner.enter(tuning_copies(tuned, live, repository))
    lock = PostgresTuningLock(pool)
    runner.spawn(StaleCopies(copies, lock).run, "remover of stale copies")
    cores = min(MOST_CORES_TRIED, os.cpu_count() or 1)
    tune = TuneDeployment(work, deployments, copies, LoadProcesses(tuned), lock, cores=cores)

    bindings = [
        ServiceBinding(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE),
        ServiceBinding(
            requests_pb2_grpc.add_RequestServiceServicer_to_server, RequestServicer(manage), REQUEST_SERVICE
        ),
        ServiceBinding(
            drift_pb2_grpc.add_DriftServiceServicer_to_server,
            DriftServicer(ReportDrift(work, drift)),
            DRIFT_SERVICE,
        ),
        ServiceBinding(
            tuning_pb2_grpc.add_TuningServiceServicer_to_server,
            TuningServicer(tune, changed=changed),
            TUNING_SERVICE,
        ),
    ]
    await runner.enter(serve(settings.grpc_address, bindings, health=runner.health))

    consumers = Consumers(Production(work), changed)
    request_consumer = RequestConsumer(
        answer, utc_now, reply_topics=settings.reply_topics, retries=settings.request_retries
    )
    table = TableConsumer(LogTable(work, tables, PublishedRows(producer)))

    def consumer_of(
        topic: str, handler: Handler, together: HandlerOfMany | None, in_flight: int, *, purpose: str = ""
    ) -> Consumer:
        return Consumer(
            platform.kafka_bootstrap,
            group=f"{settings.consumer_group}.{topic}{purpose}",
            topics=[topic],
            handler=handler,
            dead_letters=producer,
            client_id=client_id,
            max_in_flight=in_flight,
            session_seconds=platform.kafka_session_seconds,
            # Requests are in order where they ask for it; of labels the newest one stands.
            ordered=topic == MODEL_VERSIONS,
            together=together,
            wait_ms=SHORT_WAIT_MS if topic == INFERENCE_REQUESTS else WAIT_MS,
        )

    async def consume_for_tables() -> None:
        # Not before: reading all predictions a second time costs a quarter of what storing them does.
        await until_named(work)
        together = table.predictions_together
        consumer = consumer_of(PREDICTIONS, table.prediction, together, PREDICTION_EVENTS, purpose=".tables")
        runner.spawn((await runner.enter(consumer)).run, f"consumer of {PREDICTIONS}.tables")

    # A group for each topic, and of predictions for each thing that is done with them: a burst of them must
    # not hold up a promotion, nor an ingestion service that is away the log. A broker may let each group wait
    # for seconds before it begins.
    handlers = (
        (MODEL_VERSIONS, consumers.model_versions, None, 64),
        (PREDICTIONS, consumers.predictions, consumers.predictions_together, PREDICTION_EVENTS),
        (FEEDBACK, consumers.feedback, consumers.feedback_together, MAX_BATCH),
        (INFERENCE_REQUESTS, request_consumer.requests, None, settings.requests_in_flight),
    )
    opened = await runner.enter_at_once(consumer_of(*handler) for handler in handlers)
    for consumer, (topic, *_) in zip(opened, handlers, strict=True):
        runner.spawn(consumer.run, f"consumer of {topic}")
    runner.spawn(consume_for_tables, "consumer of predictions for tables")
