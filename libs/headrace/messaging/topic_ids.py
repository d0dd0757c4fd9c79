"""What tells a topic from one of the same name that was made after it was deleted: its id (Kafka's KIP-516).

aiokafka asks for metadata in a version that has none.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import BytesIO
from typing import Final
from uuid import UUID

from aiokafka import AIOKafkaConsumer
from aiokafka.client import ConnectionGroup
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

_NONE: Final = UUID(int=0)


async def topic_ids(client: AIOKafkaConsumer, topics: Iterable[str]) -> dict[str, UUID]:
    """The ids of those topics that there are, as a consumer's broker says now. Raises KafkaError."""
    connections = client._client  # noqa: SLF001 - its own connections, which it offers no other way to use
    # A broker answers what comes over one connection in turn, and holds fetches until there is something.
    try:
        answer = await connections.send(
            connections.get_random_node(), _Metadata(list(topics)), group=ConnectionGroup.COORDINATION
        )
    except NotImplementedError:
        # A broker before Kafka 2.8 has none.
        return {}
    return {name: topic_id for error, name, topic_id, *_ in answer.topics if not error and topic_id != _NONE}


def look_for_partitions(client: AIOKafkaConsumer) -> None:
    """Have a consumer look at once for its topics' partitions; by itself it does every five minutes."""
    client._client.force_metadata_update()  # noqa: SLF001 - as above


class _Uuid(AbstractType[UUID]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: UUID) -> bytes:
        return value.bytes

    @classmethod
    def decode(cls, data: BytesIO) -> UUID:
        return UUID(bytes=data.read(16))


_NAME: Final = CompactString("utf-8")
_NUMBERS: Final = CompactArray(Int32)


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32), ("host", _NAME), ("port", Int32), ("rack", _NAME), ("tags", TaggedFields)
            ),
        ),
        ("cluster_id", _NAME),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _NAME),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", _NUMBERS),
                        ("isr", _NUMBERS),
                        ("offline_replicas", _NUMBERS),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", _NAME), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _Metadata(Request[_MetadataRequest]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: list[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_MetadataRequest]) -> _MetadataRequest:
        return request_struct_class([(_NONE, topic, {}) for topic in self._topics], False, False, False, {})
