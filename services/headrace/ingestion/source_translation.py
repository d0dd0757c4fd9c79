"""A dataset's own topic, between the domain's types and the contract's messages."""

from __future__ import annotations

from typing import Final

from headrace.api.ingestion.v1 import ingestion_pb2 as api
from headrace.ingestion.domain.source_topic import SourceFormat, SourceTopic

_NUMBERS: Final = {
    SourceFormat.JSON: api.SOURCE_FORMAT_JSON,
    SourceFormat.AVRO: api.SOURCE_FORMAT_AVRO,
    SourceFormat.PROTOBUF: api.SOURCE_FORMAT_PROTOBUF,
}
_FORMATS: Final = {
    api.SOURCE_FORMAT_UNSPECIFIED: SourceFormat.JSON,
    **{number: source_format for source_format, number in _NUMBERS.items()},
}


def source_from_message(message: api.SourceTopic) -> SourceTopic:
    """JSON where no format is named."""
    return SourceTopic(message.topic, _FORMATS[message.format])


def source_to_message(source: SourceTopic) -> api.SourceTopic:
    """The same in the contract's words."""
    return api.SourceTopic(topic=source.topic, format=_NUMBERS[source.format])
