from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from tests.support.claims import claim_headers

from headrace.messaging.claims import Claim, claim_check, claim_of
from headrace.messaging.events import Event, InvalidCloudEvent, decode, encode

NOW = datetime(2026, 1, 2, tzinfo=UTC)
EVENT = Event("e1", "tests", "headrace.ingestion.sample.v1", "d", NOW, b"payload", extensions={"own": "1"})
CLAIM = Claim("s3://bucket/claims/2026-01-02/1", "0" * 64, 7)


def test_a_claim_check_is_an_event_without_a_payload_that_says_what_it_is() -> None:
    headers, value = encode(claim_check(EVENT, CLAIM))
    assert value == b""
    event = decode(headers, value, received=NOW)
    assert claim_of(event) == CLAIM
    assert (event.id, event.extensions["own"]) == ("e1", "1")


def test_an_event_with_a_payload_claims_none_whatever_it_refers_to() -> None:
    assert claim_of(EVENT) is None
    assert claim_of(replace(EVENT, extensions={"dataref": "https://elsewhere"})) is None
    assert claim_of(replace(EVENT, data=b"")) is None


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("datahash", ""),
        ("datahash", "0" * 64),
        ("datahash", "md5:" + "0" * 32),
        ("datahash", "sha256:" + "A" * 64),
        ("datasize", ""),
        ("datasize", "-1"),
        ("datasize", "7 bytes"),
        ("datasize", "9" * 19),
    ],
)
def test_a_claim_must_say_what_the_payload_is(attribute: str, value: str) -> None:
    headers, _ = encode(replace(EVENT, data=b""))
    wrong = [*headers, *claim_headers(b"payload", CLAIM.reference, **{attribute: value})]
    with pytest.raises(InvalidCloudEvent) as caught:
        claim_of(decode(wrong, b"", received=NOW))
    assert caught.value.attribute == f"ce_{attribute}"
