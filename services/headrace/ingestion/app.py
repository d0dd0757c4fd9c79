"""The composition root: what the service is made of."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from typing import Final

from headrace.api.ingestion.v1 import (
    erasure_pb2,
    erasure_pb2_grpc,
    ingestion_pb2,
    ingestion_pb2_grpc,
    versions_pb2,
    versions_pb2_grpc,
)
from headrace.ingestion.claim_remover import ClaimRemover
from headrace.ingestion.consumers import SamplesConsumer, started
from headrace.ingestion.cutter import Cutter
from headrace.ingestion.eraser import Eraser
from headrace.ingestion.erasure_grpc_api import ErasureServicer
from headrace.ingestion.expirer import Expirer
from headrace.ingestion.feeds import Feeds
from headrace.ingestion.grpc_api import IngestionServicer
from headrace.ingestion.maintainer import Maintainer
from headrace.ingestion.prediction_log import prediction_log
from headrace.ingestion.reject_watch import RejectWatch
from headrace.ingestion.rejected_events import KafkaRejectedEvents
from headrace.ingestion.schema_registry import schema_registry
from headrace.ingestion.secrets import key_ring
from headrace.ingestion.settings import Settings
from headrace.ingestion.storage.delta import DeltaTables
from headrace.ingestion.storage.erasure import DeltaErasure
from headrace.ingestion.storage.expiry import DeltaExpiry
from headrace.ingestion.storage.maintenance import DeltaMaintenance
from headrace.ingestion.storage.repository import PostgresCatalogue
from headrace.ingestion.storage.version_rows import DeltaVersionRows
from headrace.ingestion.topic_reader import KafkaTopicReader
from headrace.ingestion.use_cases.append_samples import AppendSamples
from headrace.ingestion.use_cases.apply_dataset import ApplyDataset
from headrace.ingestion.use_cases.cut_versions import CutVersions
from headrace.ingestion.use_cases.erase_subject import EraseSubject, RequestErasure
from headrace.ingestion.use_cases.expire import Expire
from headrace.ingestion.use_cases.fetch_claims import FetchClaims
from headrace.ingestion.use_cases.maintain_table import MaintainTable
from headrace.ingestion.use_cases.profile_versions import ProfileVersions
from headrace.ingestion.use_cases.read_version import ReadVersion
from headrace.ingestion.use_cases.recognise_subject import RecogniseSubject
from headrace.ingestion.use_cases.rejected_claims import RejectedClaims
from headrace.ingestion.use_cases.remove_claims import RemoveClaims
from headrace.ingestion.use_cases.replay_version import ReplayVersion
from headrace.ingestion.use_cases.resolve_rejected import DiscardRejected, ReplayRejected
from headrace.ingestion.use_cases.show_rejected import ShowRejected
from headrace.ingestion.use_cases.store_batch import StoreBatch
from headrace.ingestion.use_cases.validate_samples import ValidateSamples
from headrace.ingestion.use_cases.versions import Versions
from headrace.ingestion.use_cases.watch_rejects import WatchRejects
from headrace.ingestion.versions_grpc_api import DatasetVersionServicer
from headrace.ingestion.warm_up import warm_up
from headrace.messaging.client import batch_consumer_client, cluster_id, topic_exists
from headrace.messaging.producer import Producer
from headrace.messaging.topics import ensure_topics, load_topics
from headrace.objects.claims import StoredClaims
from headrace.objects.store import ObjectStore, delta_storage_options
from headrace.postgres import connect
from headrace.postgres.leader import lead
from headrace.postgres.migrations import migrate
from headrace.postgres.outbox import MAX_EVENT_BYTES, Relay
from headrace.rpc.server import ServiceBinding, serve
from headrace.runtime.clock import utc_now
from headrace.runtime.runner import Runner
from headrace.runtime.settings import PlatformSettings

NAME = "ingestion"
SERVICE = ingestion_pb2.DESCRIPTOR.services_by_name["IngestionService"].full_name
ERASURE_SERVICE = erasure_pb2.DESCRIPTOR.services_by_name["ErasureService"].full_name
VERSION_SERVICE = versions_pb2.DESCRIPTOR.services_by_name["DatasetVersionService"].full_name

# Whoever uses the store tries again, and says so: it is heard of soon that the store is at fault.
_STORE_RETRIES: Final = 3


async def build(runner: Runner, settings: Settings, platform: PlatformSettings) -> None:
    """Open, wire and start everything; what is entered last is closed first."""
    client_id = f"headrace-{NAME}"
    await ensure_topics(platform.kafka_bootstrap, load_topics().values())
    pool = await runner.enter(connect(platform.postgres_dsn, schema=NAME, application_name=client_id))
    await migrate(pool, "headrace.ingestion.storage")
    producer = await runner.enter(
        Producer(platform.kafka_bootstrap, client_id=client_id, idempotence=platform.kafka_idempotence)
    )
    runner.spawn(Relay(pool, producer).run, "outbox relay")

    keys = key_ring(settings)
    store = ObjectStore.from_uri(platform.store_uri, retries=_STORE_RETRIES)
    payloads = StoredClaims(store, seconds=settings.claim_seconds)
    claims = FetchClaims(payloads, max_bytes=settings.max_claim_bytes)

    def table_path(dataset: str) -> str:
        return f"datasets/{dataset}"

    tables = DeltaTables(lambda name: store.uri(table_path(name)), delta_storage_options())
    catalogue = PostgresCatalogue(pool)
    rows = DeltaVersionRows(tables.uri, delta_storage_options())
    registry = await runner.enter(schema_registry(settings))
    predictions = await runner.enter(prediction_log(settings))
    profiles = ProfileVersions(catalogue, rows)
    versions = CutVersions(catalogue, tables, profiles, clock=utc_now)
    cutter = Cutter(catalogue, versions, sweep_seconds=settings.sweep_seconds)
    runner.spawn(cutter.run, "version cutter")
    watch = WatchRejects(catalogue, tables, versions, clock=utc_now)
    runner.spawn(RejectWatch(watch, seconds=settings.reject_watch_seconds).run, "reject watch")

    one_table_writer = asyncio.Lock()
    maintainer = Maintainer(
        catalogue,
        MaintainTable(
            catalogue,
            DeltaMaintenance(
                tables.uri,
                delta_storage_options(),
                clock=utc_now,
                target_bytes=settings.merge_target_bytes,
                min_files=settings.merge_min_files,
                retention_hours=settings.retention_hours,
            ),
            clock=utc_now,
            reader_hours=settings.retention_hours,
        ),
        clock=utc_now,
        interval_seconds=settings.maintenance_seconds,
        vacuum_hours=settings.vacuum_hours,
        tables=one_table_writer,
    )
    eraser = Eraser(
        catalogue,
        EraseSubject(
            catalogue,
            DeltaErasure(store, table_path, delta_storage_options(), clock=utc_now),
            profiles,
            keys,
            RecogniseSubject(registry),
            RejectedClaims(catalogue, payloads, max_bytes=settings.max_claim_bytes),
            predictions,
            clock=utc_now,
        ),
        one_table_writer,
    )
    claim_remover = ClaimRemover(
        RemoveClaims(
            catalogue, payloads, clock=utc_now, retention=timedelta(hours=settings.claim_retention_hours)
        ),
        interval=timedelta(hours=settings.vacuum_hours),
    )

    expirer = Expirer(
        catalogue,
        Expire(catalogue, DeltaExpiry(tables.uri, delta_storage_options(), clock=utc_now), clock=utc_now),
        interval_seconds=settings.expiry_seconds,
        tables=one_table_writer,
    )

    async def look_after_tables() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(maintainer.run())
            group.create_task(eraser.run())
            group.create_task(expirer.run())
            group.create_task(claim_remover.run())

    runner.spawn(lead(pool, "headrace.ingestion.maintenance", look_after_tables), "table maintenance")

    servicer = IngestionServicer(
        catalogue,
        tables,
        apply_dataset=ApplyDataset(
            catalogue, tables, partial(topic_exists, platform.kafka_bootstrap), clock=utc_now, keys=keys
        ),
        append_samples=AppendSamples(
            catalogue, producer, clock=utc_now, max_event_bytes=settings.max_event_bytes
        ),
        validate_samples=ValidateSamples(catalogue),
        versions=versions,
        replay_rejected=ReplayRejected(catalogue, clock=utc_now, max_bytes=MAX_EVENT_BYTES, keys=keys),
        discard_rejected=DiscardRejected(catalogue, clock=utc_now),
        show_rejected=ShowRejected(catalogue, keys),
    )
    version_servicer = DatasetVersionServicer(
        Versions(catalogue),
        tables,
        read=ReadVersion(catalogue, rows, keys),
        replay=ReplayVersion(
            catalogue,
            rows,
            KafkaTopicReader(
                platform.kafka_bootstrap,
                client_id=client_id,
                max_record_batch_bytes=settings.max_record_batch_bytes,
            ),
            max_event_bytes=settings.max_event_bytes,
            registry=registry,
            claims=claims,
            keys=keys,
        ),
    )
    bindings = [
        ServiceBinding(ingestion_pb2_grpc.add_IngestionServiceServicer_to_server, servicer, SERVICE),
        ServiceBinding(
            versions_pb2_grpc.add_DatasetVersionServiceServicer_to_server, version_servicer, VERSION_SERVICE
        ),
        ServiceBinding(
            erasure_pb2_grpc.add_ErasureServiceServicer_to_server,
            ErasureServicer(catalogue, RequestErasure(catalogue, keys, clock=utc_now)),
            ERASURE_SERVICE,
        ),
    ]
    await runner.enter(serve(settings.grpc_address, bindings, health=runner.health))

    # No batch waits for it, and no heartbeat.
    await asyncio.to_thread(warm_up)
    consumer = await runner.enter(
        started(
            batch_consumer_client(
                platform.kafka_bootstrap,
                group=settings.consumer_group,
                client_id=client_id,
                session_seconds=platform.kafka_session_seconds,
            )
        )
    )
    samples = SamplesConsumer(
        consumer,
        StoreBatch(
            catalogue,
            tables,
            KafkaRejectedEvents(producer, max_bytes=settings.max_published_bytes),
            clock=utc_now,
            max_event_bytes=settings.max_event_bytes,
            deduplicate_events=settings.deduplicate_events,
            registry=registry,
            claims=claims,
            keys=keys,
        ),
        cluster_id=partial(cluster_id, platform.kafka_bootstrap),
        feeds=Feeds(catalogue, consumer),
        stored=cutter.touched,
        settings=settings,
        health=runner.health,
    )
    runner.spawn(samples.run, "samples consumer")
    runner.on_stop(samples.drain, "samples consumer's last batch")
