"""A topic of its owner's choice that a dataset takes, whose events need not know of CloudEvents."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Final

from headrace.errors import FieldViolation, InvalidArgument

# Kafka's own rule, and the lengths and names that its tools refuse.
_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_NO_TOPICS: Final = (".", "..")
# The platform's topics have owners and rules of their own; Kafka's hold its book-keeping.
_TAKEN_PREFIXES: Final = ("headrace.", "__")


class SourceFormat(enum.Enum):
    """What the values of a topic's events are."""

    JSON = "JSON"
    AVRO = "AVRO"
    PROTOBUF = "PROTOBUF"


@dataclass(frozen=True, slots=True)
class SourceTopic:
    """The topic's name, and what its events' values are."""

    topic: str
    format: SourceFormat = SourceFormat.JSON


@dataclass(frozen=True, slots=True)
class Feed:
    """A topic whose events are all samples of one dataset."""

    dataset: str
    source: SourceTopic


def check_source(source: SourceTopic | None) -> None:
    """Raises InvalidArgument INVALID_SOURCE."""
    if source is None:
        return
    if not _TOPIC.fullmatch(source.topic) or source.topic in _NO_TOPICS:
        raise _invalid(f'"{source.topic[:80]}" is no name of a Kafka topic')
    if source.topic.startswith(_TAKEN_PREFIXES):
        raise _invalid(
            f'"{source.topic}" is not for datasets: name a topic of your own. Samples with CloudEvents '
            "attributes go to headrace.ingestion.samples.v1, and name their dataset by ce_subject"
        )


def changes_format(existing: SourceTopic | None, changed: SourceTopic | None) -> bool:
    """Whether events of one topic are read in another way from then on."""
    if existing is None or changed is None:
        return False
    return existing.topic == changed.topic and existing.format is not changed.format


def place_id(cluster: str, topic: str, partition: int, offset: int) -> str:
    """The id of an event that has none: where it stands."""
    return f"{cluster}/{topic}/{partition}/{offset}"


def _invalid(description: str) -> InvalidArgument:
    return InvalidArgument(
        "INVALID_SOURCE",
        f"source.topic: {description}",
        fields=[FieldViolation("source.topic", description)],
    )
