"""Topic files, the code's constants and the event messages say the same."""

from __future__ import annotations

import importlib
import re
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import service_pb2

from headrace.cli.events import PAYLOADS
from headrace.inference.settings import Settings as InferenceSettings
from headrace.ingestion.settings import Settings
from headrace.messaging import topics
from headrace.messaging.topics import Topic, load_topics
from headrace.runtime.resources import deploy_path

ROOT = Path(__file__).parents[2]
SERVICES = {"ingestion", "scheduling", "training", "registry", "inference"}
# Who reads or writes topics beside the services.
OTHERS = {"producers", "operators", "console", "triton"}
# The Open Inference Protocol's own messages, which are the payload as they are.
PROTOCOL = "inference."
CONTENT_TYPES = {
    "application/avro",
    "application/cloudevents+json",
    "application/json",
    "application/protobuf",
}
TOPICS = load_topics()
CONSTANTS = {
    name: value
    for name, value in vars(topics).items()
    if name.isupper() and isinstance(value, str) and value.startswith("headrace.")
}

each_topic = pytest.mark.parametrize("topic", TOPICS.values(), ids=list(TOPICS))


@cache
def event_messages() -> dict[str, Descriptor]:
    found = {}
    for file in (ROOT / "protos" / "headrace" / "events").glob("*/v*/*.proto"):
        relative = file.relative_to(ROOT / "protos").with_suffix("")
        module = importlib.import_module(".".join(relative.parts) + "_pb2")
        found.update(
            {message.full_name: message for message in module.DESCRIPTOR.message_types_by_name.values()}
        )
    return found


def test_every_topic_is_a_constant_and_every_constant_a_topic() -> None:
    assert set(CONSTANTS.values()) == set(TOPICS)
    assert len(CONSTANTS) == len(TOPICS)


def test_a_topics_file_is_named_like_it() -> None:
    files = {file.stem for file in deploy_path("kafka/topics").iterdir()}
    assert files == set(TOPICS)


@each_topic
def test_a_name_is_domain_plural_and_major_version(topic: Topic) -> None:
    match = re.fullmatch(r"headrace\.([a-z]+)\.([a-z]+(?:-[a-z]+)*s|feedback)\.v[1-9][0-9]*", topic.name)
    assert match is not None
    assert match[1] == topic.owner
    assert topic.owner in SERVICES | {"platform"}


@each_topic
def test_a_payload_is_a_message_that_exists(topic: Topic) -> None:
    if topic.name == topics.DEAD_LETTERS:
        assert topic.payload == ["any"]
        return
    assert topic.payload
    for name in topic.payload:
        if name.startswith(PROTOCOL):
            assert name.removeprefix(PROTOCOL) in service_pb2.DESCRIPTOR.message_types_by_name
            continue
        assert name in event_messages()
        assert name.startswith(f"headrace.events.{topic.owner}.v1.")


@each_topic
def test_operators_read_every_payload_by_command(topic: Topic) -> None:
    if topic.name != topics.DEAD_LETTERS and "application/protobuf" in topic.content_types:
        assert set(topic.payload) <= set(PAYLOADS.values())


def test_every_event_message_has_a_topic() -> None:
    carried = [
        name
        for topic in TOPICS.values()
        for name in topic.payload
        if name != "any" and not name.startswith(PROTOCOL)
    ]
    assert len(carried) == len(set(carried))
    # Messages that are parts of others are no events.
    parts = {part for message in event_messages().values() for part in _parts(message)}
    assert set(event_messages()) - parts == set(carried)


def _parts(message: Descriptor) -> set[str]:
    inner = {field.message_type for field in message.fields if field.message_type is not None}
    # A map's entries are messages of their own inside the message.
    entries = {kind for kind in inner if kind.GetOptions().map_entry}
    return {kind.full_name for kind in inner}.union(*(_parts(entry) for entry in entries))


@each_topic
def test_the_parties_are_known_and_some(topic: Topic) -> None:
    assert set(topic.producers) | set(topic.consumers) <= SERVICES | OTHERS
    assert topic.producers
    assert topic.consumers


@each_topic
def test_the_content_types_are_those_that_consumers_read(topic: Topic) -> None:
    assert topic.content_types
    assert set(topic.content_types) <= CONTENT_TYPES


@each_topic
def test_dead_letters_go_to_a_topic_that_has_none_itself(topic: Topic) -> None:
    if topic.dead_letter is None:
        assert topic.name in {topics.DEAD_LETTERS, topics.REJECTED_SAMPLES}
    else:
        assert TOPICS[topic.dead_letter].dead_letter is None


@each_topic
def test_a_topic_that_a_service_consumes_is_named_in_its_code(topic: Topic) -> None:
    constant = next(name for name, value in CONSTANTS.items() if value == topic.name)
    parties = SERVICES & {*topic.producers, *topic.consumers}
    if topic.name == topics.DEAD_LETTERS:
        return
    for service in parties:
        texts = [file.read_text() for file in (ROOT / "services" / "headrace" / service).rglob("*.py")]
        assert any(re.search(rf"\b{constant}\b", text) for text in texts), service


@each_topic
def test_the_messages_comments_name_their_topic(topic: Topic) -> None:
    if topic.name == topics.DEAD_LETTERS:
        return
    folder = ROOT / "protos" / "headrace" / "events" / topic.owner
    assert any(topic.name in file.read_text() for file in folder.rglob("*.proto"))


@each_topic
def test_a_topic_is_described_in_sentences(topic: Topic) -> None:
    assert topic.description.endswith(".")
    assert topic.key


def test_answers_are_remembered_for_longer_than_requests_are_read() -> None:
    kept = timedelta(hours=InferenceSettings().request_retention_hours)
    assert kept >= timedelta(milliseconds=TOPICS[topics.INFERENCE_REQUESTS].retention_ms) + timedelta(days=1)


def test_claimed_payloads_outlive_the_events_that_claim_them() -> None:
    # A day for what is uploaded before it is sent, and for clocks that differ.
    needed = timedelta(milliseconds=TOPICS[topics.SAMPLES].retention_ms) + timedelta(days=1)
    assert timedelta(hours=Settings().claim_retention_hours) >= needed
