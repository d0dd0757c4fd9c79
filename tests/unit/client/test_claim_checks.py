"""What the SDK sends of samples that are too large for Kafka, and of tensors."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from headrace.client import HeadraceClient, Targets
from headrace.errors import InvalidArgument
from headrace.messaging.claims import claim_of
from headrace.messaging.events import Event
from headrace.objects import ObjectStore


class Client(HeadraceClient):
    """A client whose broker takes everything."""

    def __init__(self, store: str = "") -> None:
        super().__init__(Targets({"store": store} if store else {}), inline_bytes=100)
        self.sent: list[tuple[str, Event]] = []

    async def publish(self, topic: str, keyed: Iterable[tuple[str, Event]]) -> None:
        self.sent += keyed


async def test_a_payload_that_is_too_large_is_in_the_store_before_its_event_is_sent(tmp_path: Path) -> None:
    client = Client(tmp_path.as_uri())
    samples = [json.dumps({"id": str(number), "text": "x" * 60 * number}) for number in range(3)]
    assert await client.produce("d", [*samples, samples[2]], key="id") == 4
    assert [key for key, _ in client.sent] == ["0", "1", "2", "2"]
    first, second, *large = [event for _, event in client.sent]
    assert [first.data, second.data] == [sample.encode() for sample in samples[:2]]
    store = ObjectStore.from_uri(tmp_path.as_uri())
    for event in large:
        claim = claim_of(event)
        assert claim is not None
        assert (event.data, event.subject, claim.size) == (b"", "d", len(samples[2]))
        assert claim.sha256 == hashlib.sha256(samples[2].encode()).hexdigest()
        path = store.path(claim.reference)
        assert path == f"claims/{event.time:%Y-%m-%d}/{claim.sha256}"
        assert await store.get(path) == samples[2].encode()


async def test_without_a_store_it_is_refused_and_nothing_is_sent() -> None:
    client = Client()
    with pytest.raises(InvalidArgument, match="HEADRACE_STORE_URI") as caught:
        await client.produce("d", ['{"id": "1"}', json.dumps({"id": "2", "text": "x" * 100})], key="id")
    assert caught.value.reason == "OVERSIZE_EVENT"
    assert client.sent == []


async def test_tensors_are_sent_as_their_bytes_in_base64() -> None:
    client = Client()
    signal = np.array([[1, 2], [3, 4]], ">f4").T
    await client.produce("d", [{"id": "1", "s": signal, "image": b"\x89PNG", "n": np.int8(5)}], key="id")
    [(_, event)] = client.sent
    numbers = np.array([[1, 3], [2, 4]], "<f4")
    assert json.loads(event.data) == {
        "id": "1",
        "s": base64.b64encode(numbers.tobytes()).decode(),
        "image": base64.b64encode(b"\x89PNG").decode(),
        "n": 5,
    }


async def test_what_is_neither_json_nor_a_tensor_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="set is neither JSON nor a tensor's bytes"):
        await Client().produce("d", [{"id": {1}}], key="id")
