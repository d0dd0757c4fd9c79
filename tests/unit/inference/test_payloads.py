"""Payloads that are too large for a topic, and claims that cannot be made good."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.async_requests import event

from headrace.inference.payloads import INLINE_BYTES, StoredPayloads
from headrace.inference.use_cases.request_ports import WrongRequest
from headrace.messaging.claims import claim_of
from headrace.objects import ObjectStore

LARGE = replace(event("r1", partitionkey="k"), data=b"x" * (INLINE_BYTES + 1))


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore.from_uri(tmp_path.as_uri())


async def test_what_is_too_large_becomes_a_claim_check_and_is_fetched_again(store: ObjectStore) -> None:
    payloads = StoredPayloads(store, max_bytes=INLINE_BYTES + 1)
    claimed = await payloads.fitting(LARGE)
    assert (claimed.data, claim_of(claimed) is None) == (b"", False)
    assert await payloads.fetched(claimed) == LARGE
    small = event("r2")
    assert await payloads.fitting(small) == small
    assert await payloads.fetched(small) == small


@pytest.mark.parametrize(
    ("changes", "reason", "code"),
    [
        ({"dataref": "file:///etc/passwd"}, "CLAIM_FOREIGN", "INVALID_ARGUMENT"),
        ({"datasize": "1"}, "CLAIM_MISMATCH", "INVALID_ARGUMENT"),
        ({"datahash": "sha256:" + "0" * 64}, "CLAIM_MISMATCH", "INVALID_ARGUMENT"),
        ({"datahash": "md5:0"}, "INVALID_CLAIM", "INVALID_ARGUMENT"),
        ({"datasize": str(INLINE_BYTES + 2)}, "CLAIM_OVERSIZE", "RESOURCE_EXHAUSTED"),
    ],
)
async def test_a_claim_that_cannot_be_made_good_is_refused(
    store: ObjectStore, changes: dict[str, str], reason: str, code: str
) -> None:
    payloads = StoredPayloads(store, max_bytes=INLINE_BYTES + 1)
    claimed = await payloads.fitting(LARGE)
    with pytest.raises(WrongRequest) as raised:
        await payloads.fetched(replace(claimed, extensions={**claimed.extensions, **changes}))
    assert (raised.value.reason, raised.value.code) == (reason, code)


async def test_a_claimed_object_that_there_is_not_is_told(store: ObjectStore) -> None:
    payloads = StoredPayloads(store, max_bytes=INLINE_BYTES + 1)
    claimed = await payloads.fitting(LARGE)
    gone = claimed.extensions["dataref"] + "0"
    with pytest.raises(WrongRequest) as raised:
        await payloads.fetched(replace(claimed, extensions={**claimed.extensions, "dataref": gone}))
    assert raised.value.reason == "CLAIM_MISSING"
