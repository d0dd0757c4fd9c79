"""Composition root: opens what the service needs and starts it."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

from headrace.messaging.consumer import Consumer
from headrace.messaging.producer import Producer
from headrace.messaging.topics import ensure_topics, load_topics
from headrace.postgres.leader import lead
from headrace.postgres.migrations import migrate
from headrace.postgres.outbox import Relay
from headrace.postgres.pool import connect
from headrace.rpc.server import serve
from headrace.runtime.clock import utc_now
from headrace.runtime.ids import new_id
from headrace.runtime.runner import Runner
from headrace.runtime.settings import PlatformSettings
from headrace.scheduling.consumers import TOPICS, EventHandler
from headrace.scheduling.domain.policy import Limits
from headrace.scheduling.grpc_api import SchedulingServicer, binding
from headrace.scheduling.grpc_clients import Targets, connect_peers
from headrace.scheduling.node_streams import NodeStreams
from headrace.scheduling.settings import Settings
from headrace.scheduling.storage.changes import PostgresChanges
from headrace.scheduling.storage.store import CONSUMER, PostgresStore
from headrace.scheduling.use_cases.jobs import Jobs
from headrace.scheduling.use_cases.nodes import Nodes
from headrace.scheduling.use_cases.pipelines import Pipelines
from headrace.scheduling.use_cases.reconcile import Reconciler
from headrace.scheduling.use_cases.retrain_on_drift import RetrainOnDrift

NAME = "scheduling"
LEADER_LOCK = "headrace.scheduling.reconcile"
RETRAINING_LOCK = "headrace.scheduling.retraining"


async def build(settings: Settings, platform: PlatformSettings, runner: Runner) -> None:
    """Open and start everything; closed by the runner in reverse order."""
    # The relay, the change feed and the leader each keep connections of their own.
    pool = await runner.enter(
        connect(platform.postgres_dsn, schema=NAME, application_name=CONSUMER, max_size=16)
    )
    await migrate(pool, "headrace.scheduling.storage")
    await ensure_topics(platform.kafka_bootstrap, load_topics().values())
    producer = await runner.enter(
        Producer(platform.kafka_bootstrap, client_id=CONSUMER, idempotence=platform.kafka_idempotence)
    )
    targets = Targets(settings.ingestion_target, settings.registry_target, settings.inference_target)
    peers = await runner.enter(connect_peers(targets))

    store = PostgresStore(pool, utc_now)
    changes = PostgresChanges(pool)
    lease = timedelta(seconds=settings.lease_seconds)
    jobs = Jobs(store, peers, changes, utc_now, new_id)
    nodes = Nodes(store, utc_now, new_id, lease)
    pipelines = Pipelines(store, peers, utc_now, stored=jobs.train_newest)
    limits = Limits(lease, timedelta(seconds=settings.deadline_margin_seconds))
    reconciler = Reconciler(store, changes, utc_now, limits)
    retraining = RetrainOnDrift(store, peers, utc_now, jobs.new_job)

    runner.spawn(changes.run, "changes")
    runner.spawn(Relay(pool, producer).run, "outbox relay")
    runner.spawn(partial(lead, pool, LEADER_LOCK, reconciler.lead), "reconcile")
    runner.spawn(partial(lead, pool, RETRAINING_LOCK, retraining.run), "retraining on drift")
    servicer = SchedulingServicer(pipelines, jobs, nodes, NodeStreams(nodes, changes), utc_now, retraining)
    await runner.enter(serve(settings.grpc_address, [binding(servicer)], health=runner.health))
    consumer = await runner.enter(
        Consumer(
            platform.kafka_bootstrap,
            group=settings.consumer_group,
            topics=TOPICS,
            handler=EventHandler(jobs, retraining).handle,
            dead_letters=producer,
            client_id=CONSUMER,
            session_seconds=platform.kafka_session_seconds,
        )
    )
    runner.spawn(consumer.run, "consumer")
