from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from headrace.messaging.topics import Topic, load_topics

TOPIC = """
name: tests.things.v1
description: Things.
owner: tests
producers: [tests]
consumers: [tests]
payload: [tests.Thing]
content_types: [application/protobuf]
key: thing
partitions: 2
retention: 7d
"""


def write(folder: Path, text: str) -> Path:
    (folder / "tests.things.v1.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("retention", "milliseconds"),
    [("90s", 90_000), ("5m", 300_000), ("12h", 43_200_000), ("7d", 604_800_000), ("forever", -1)],
)
def test_a_retention_is_a_number_with_a_unit_or_forever(
    tmp_path: Path, retention: str, milliseconds: int
) -> None:
    topics = load_topics(write(tmp_path, TOPIC.replace("7d", retention)))
    assert topics["tests.things.v1"].retention_ms == milliseconds


@pytest.mark.parametrize("retention", ["7", "d", "7 d", "-1", "7w", ""])
def test_another_retention_is_refused(tmp_path: Path, retention: str) -> None:
    with pytest.raises(ValidationError, match="neither like 7d nor forever"):
        load_topics(write(tmp_path, TOPIC.replace("7d", f'"{retention}"')))


def test_a_key_that_no_topic_file_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="replicas"):
        load_topics(write(tmp_path, TOPIC + "replicas: 3\n"))


def test_a_topic_without_partitions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="partitions"):
        load_topics(write(tmp_path, TOPIC.replace("partitions: 2", "partitions: 0")))


def test_topics_are_found_by_name(tmp_path: Path) -> None:
    topics = load_topics(write(tmp_path, TOPIC))
    assert list(topics) == ["tests.things.v1"]
    assert isinstance(topics["tests.things.v1"], Topic)
