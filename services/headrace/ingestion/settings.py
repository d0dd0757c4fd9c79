"""Settings of the ingestion service, from the environment."""

from __future__ import annotations

from typing import Final

from pydantic import AnyHttpUrl, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from headrace.messaging.record_batch import MAX_BATCH_BYTES
from headrace.postgres.outbox import MAX_EVENT_BYTES
from headrace.rpc.options import MAX_MESSAGE_BYTES

# Room for what says how an event was judged, whatever was cut off of the event itself.
MIN_PUBLISHED_BYTES: Final = 16 * 1024
# A larger record would be refused for ever; the event about a rejected one has headers and a key besides.
MAX_PUBLISHED_BYTES: Final = MAX_EVENT_BYTES - 100_000
# A row always fits into a message of gRPC, with room for its other columns.
MAX_CLAIM_BYTES: Final = MAX_MESSAGE_BYTES - (4 << 20)


class Settings(BaseSettings):
    """Environment prefix `HEADRACE_INGESTION_`: `HEADRACE_INGESTION_GRPC_ADDRESS`, ..."""

    model_config = SettingsConfigDict(env_prefix="HEADRACE_INGESTION_", frozen=True)

    grpc_address: str = "127.0.0.1:7101"
    http_address: str = "127.0.0.1:7201"
    consumer_group: str = "headrace-ingestion"

    max_event_bytes: int = Field(
        default=1024 * 1024, gt=0, description="A larger event (key, payload, headers) is rejected."
    )
    max_published_bytes: int = Field(
        default=512 * 1024,
        ge=MIN_PUBLISHED_BYTES,
        le=MAX_PUBLISHED_BYTES,
        description="What is published of a rejected event is cut off here; the table keeps all of it.",
    )
    batch_events: int = Field(
        default=30_000,
        gt=0,
        description="A batch is closed when it has so many events; it is stored in parts of twice as many.",
    )
    batch_bytes: int = Field(
        default=32 * 1024 * 1024,
        gt=0,
        description="A batch is closed when it has so many bytes; it is stored in parts of twice as many.",
    )
    max_record_batch_bytes: int = Field(
        default=MAX_BATCH_BYTES,
        gt=0,
        description="A record batch that has more bytes, decompressed, is rejected as a whole.",
    )
    batch_seconds: float = Field(
        default=0.25, gt=0, description="A batch is closed so long after its first event."
    )
    deduplicate_events: int = Field(
        default=250_000,
        ge=0,
        le=100_000_000,
        description=(
            "An event is left out where one of the same source and id was stored from the same partition, "
            "at most so many offsets before. 0: never."
        ),
    )
    max_claim_bytes: int = Field(
        default=MAX_CLAIM_BYTES,
        gt=0,
        le=MAX_CLAIM_BYTES,
        description="A larger claimed payload is rejected; at most so many bytes are fetched at once.",
    )
    claim_seconds: float = Field(
        default=30.0, gt=0, description="How long the object store's answer about a claim is waited for."
    )
    # A day more than the samples topic keeps events.
    claim_retention_hours: int = Field(
        default=192,
        ge=24,
        description="Claimed payloads are removed so long after they were written; longer than the topic's.",
    )
    privacy_keys_file: str = Field(
        default="",
        description="File with the keys of personal data: a line ID=BASE64 each, the newest last.",
    )
    privacy_keys: SecretStr = Field(
        default=SecretStr(""),
        description="The same keys, separated by commas, in the place of a file.",
    )
    inference_target: str = Field(
        default="127.0.0.1:7105",
        description="The inference service, whose prediction log erasures reach. Empty: there is none.",
    )
    retry_seconds: float = Field(
        default=5.0, gt=0, description="Longest pause before a batch that failed is tried again."
    )
    schema_registry_url: AnyHttpUrl | None = Field(
        default=None,
        description="A Confluent-compatible schema registry. None: what needs one is rejected.",
    )
    schema_registry_user: str = Field(default="", description="Or an API key. Empty: no credentials.")
    schema_registry_password: SecretStr = Field(default=SecretStr(""), description="Or an API key's secret.")
    schema_registry_seconds: float = Field(
        default=5.0, gt=0, description="How long an answer of the registry is waited for."
    )
    schema_registry_kept: int = Field(default=1000, gt=0, description="So many schemas are kept in memory.")
    feeds_seconds: float = Field(
        default=5.0, gt=0, description="How often datasets are looked at for topics of their own."
    )
    sweep_seconds: float = Field(
        default=10.0, gt=0, description="How often all datasets are looked at for versions that are due."
    )
    reject_watch_seconds: float = Field(
        default=5.0, gt=0, description="How often the shares of rejected events are looked at."
    )
    maintenance_seconds: float = Field(
        default=60.0, gt=0, description="How often all tables are looked at for small files."
    )
    merge_min_files: int = Field(
        default=16, ge=2, description="So many files of about one size are merged into one."
    )
    merge_target_bytes: int = Field(
        default=64 * 1024 * 1024, gt=0, description="Files are merged up to this size."
    )
    vacuum_hours: float = Field(
        default=24.0, gt=0, description="How often files that nobody needs any more are removed."
    )
    # A day at least: a younger file may be one that a writer is about to commit.
    retention_hours: int = Field(
        default=168,
        ge=24,
        description="Files that no dataset version needs stay so long, for readers of the table itself.",
    )
    expiry_seconds: float = Field(
        default=3600.0, gt=0, description="How often what datasets keep for a time only is looked at."
    )
