"""What is claimed, from where, and what becomes of claims that cannot be made good."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from tests.support.claims import ROOT, FakePayloads, claim_headers, claims_of
from tests.support.records import Headers, Sent, records_of

from headrace.errors import FailedPrecondition, Unavailable
from headrace.ingestion.domain.rejection import Reason, Verdict
from headrace.ingestion.use_cases.envelopes import Opened, open_envelopes
from headrace.ingestion.use_cases.ports import Catalogue
from headrace.ingestion.use_cases.remove_claims import RemoveClaims
from headrace.messaging.attributes import read_attributes
from headrace.objects import ObjectStore
from headrace.objects.claims import StoredClaims

NOW = datetime(2026, 1, 20, tzinfo=UTC)
ENVELOPE = [
    ("ce_specversion", b"1.0"),
    ("ce_id", b"e"),
    ("ce_source", b"tests"),
    ("ce_type", b"headrace.ingestion.sample.v1"),
    ("ce_subject", b"d"),
    ("content-type", b"application/json"),
]


def opened(*sent: tuple[Headers, bytes]) -> Opened:
    records = records_of(
        Sent(offset, value, [*ENVELOPE, *headers]) for offset, (headers, value) in enumerate(sent)
    )
    return open_envelopes(records, read_attributes(records), {}, 1000)


async def fetched(payloads: FakePayloads, *headers: Headers) -> Opened:
    return await claims_of(payloads)(opened(*((some, b"") for some in headers)), {"d"})


def payloads_of(found: Opened) -> dict[int, bytes]:
    return {int(samples.indexes[0]): samples.payloads[0] for samples in found.samples}


async def test_payloads_take_the_place_of_claims() -> None:
    payloads = FakePayloads()
    texts = [b"first", b"", b"third, and longer"]
    references = [payloads.put(f"2026-01-20/{number}", text) for number, text in enumerate(texts)]
    found = await fetched(
        payloads, *(claim_headers(text, place) for text, place in zip(texts, references, strict=True))
    )
    assert (payloads_of(found), found.refused) == (dict(enumerate(texts)), [])
    assert {(samples.dataset, samples.media_type) for samples in found.samples} == {("d", "application/json")}


def test_only_events_without_a_payload_claim_one_whatever_they_have_in_common() -> None:
    reference = claim_headers(b"x", f"{ROOT}/claims/x")
    foreign = [("ce_dataref", b"https://elsewhere/x")]
    found = opened((reference, b""), (reference, b"inline"), (foreign, b"inline"), (foreign, b""))
    assert [one.index for one in found.claimed] == [0]
    assert sorted(int(index) for samples in found.samples for index in samples.indexes) == [1, 2]
    [(index, verdict)] = found.refused
    assert (index, verdict.reason, verdict.field) == (3, Reason.INVALID_CLOUDEVENT, "ce_datahash")
    assert found.datasets() == {"d"}


def test_a_structured_event_may_claim_its_payload_too() -> None:
    attributes = dict(claim_headers(b"x", f"{ROOT}/claims/x"))
    event = {
        "specversion": "1.0",
        "id": "e",
        "source": "tests",
        "type": "headrace.ingestion.sample.v1",
        "subject": "d",
        **{name.removeprefix("ce_"): value.decode() for name, value in attributes.items()},
    }
    structured = [("content-type", b"application/cloudevents+json")]
    [one] = opened((structured, json.dumps(event).encode())).claimed
    assert (one.claim.reference, one.claim.size) == (f"{ROOT}/claims/x", 1)


async def refusal(payloads: FakePayloads, headers: Headers) -> tuple[Reason, str, str]:
    [(_, verdict)] = (await fetched(payloads, headers)).refused
    assert isinstance(verdict, Verdict)
    return verdict.reason, verdict.field, verdict.rule


async def test_a_claim_that_cannot_be_made_good_is_refused() -> None:
    payloads = FakePayloads()
    place = payloads.put("x", b"payload")
    missing, foreign, oversize, size, content = [
        await refusal(payloads, headers)
        for headers in (
            claim_headers(b"payload", f"{ROOT}/claims/y"),
            claim_headers(b"payload", f"{ROOT}/datasets/x"),
            claim_headers(b"payload", place, datasize="1001"),
            claim_headers(b"payload", place, datasize="8"),
            claim_headers(b"another", place),
        )
    ]
    assert missing == (Reason.CLAIM_MISSING, "ce_dataref", "exists")
    assert foreign == (Reason.CLAIM_FOREIGN, "ce_dataref", "location")
    assert oversize == (Reason.CLAIM_OVERSIZE, "ce_datasize", "max_claim_bytes")
    assert size == (Reason.CLAIM_MISMATCH, "ce_datasize", "size")
    assert content == (Reason.CLAIM_MISMATCH, "ce_datahash", "sha256")


async def test_a_store_that_is_away_decides_nothing() -> None:
    payloads = FakePayloads()
    headers = claim_headers(b"payload", payloads.put("x", b"payload"))
    payloads.away = True
    with pytest.raises(Unavailable, match="the object store is away"):
        await fetched(payloads, headers)


async def test_for_a_dataset_that_there_is_not_nothing_is_fetched() -> None:
    payloads = FakePayloads(away=True)
    found = await claims_of(payloads)(opened((claim_headers(b"x", f"{ROOT}/claims/x"), b"")), set())
    assert (payloads_of(found), found.refused) == ({0: b""}, [])


def test_parts_have_no_more_payloads_than_fit_and_every_claim_once() -> None:
    claims = claims_of(FakePayloads(), max_bytes=10)
    sizes = [4, 4, 4, 11, 10, 1]
    found = opened(
        *((claim_headers(b"", f"{ROOT}/claims/x", datasize=str(size)), b"") for size in sizes),
        ([], b"inline"),
    )
    parts = list(claims.parts(found))
    # What is too large is never fetched.
    assert [[one.claim.size for one in part.claimed] for part in parts] == [[4, 4], [4, 11], [10], [1]]
    assert [sum(map(len, part.samples)) for part in parts] == [1, 0, 0, 0]


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_payloads_are_claimed_from_the_stores_own_folder_only(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    root = (tmp_path / "a store").as_uri() if scheme == "file" else "s3://bucket/stack"
    stored = StoredClaims(ObjectStore.from_uri(root), seconds=1)
    allowed = ["claims/2026-01-20/0af", "claims/camera-7/000_1.json", "claims/x"]
    assert [stored.path(f"{root}/{path}") for path in allowed] == allowed
    for reference in (
        "claims/x",
        f"{root}/claims",
        f"{root}/claims/",
        f"{root}/claims//x",
        f"{root}/claims/../datasets/x",
        f"{root}/claims/x/..",
        f"{root}/claims/%2e%2e/datasets/x",
        f"{root}/claims/.hidden",
        f"{root}/claims/x?versionId=1",
        f"{root}/claims/x#1",
        f"{root}/claims/x\n",
        f"{root}/claims/x y",
        f"{root}/claims/{'x' * 256}",
        f"{root}/claims{'/x' * 256}",
        f"{root}/claims\\x",
        f"{root}/claimsx/y",
        f"{root}/datasets/orders/0.parquet",
        f"{root}x/claims/y",
        f"{root.upper()}/claims/x",
        "file:///etc/passwd",
        "file:///claims/x",
        "s3://other/stack/claims/x",
        "http://169.254.169.254/latest/meta-data",
    ):
        assert stored.path(reference) is None, reference


class InUse:
    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    async def now(self) -> datetime:
        return NOW

    async def claims_in_use(self, since: datetime) -> Sequence[str]:
        assert since == NOW - timedelta(days=8)
        return self._paths


async def test_no_payload_goes_by_a_clock_that_has_jumped() -> None:
    payloads = FakePayloads()
    payloads.put("old", b"x")
    payloads.written["claims/old"] = NOW - timedelta(days=9)
    remove = RemoveClaims(
        cast("Catalogue", InUse([])),
        payloads,
        clock=lambda: NOW + timedelta(days=30),
        retention=timedelta(days=8),
    )
    with pytest.raises(FailedPrecondition, match="this service's clock says"):
        await remove()
    assert list(payloads.objects) == ["claims/old"]


async def test_payloads_go_by_age_unless_a_rejected_event_waits_for_its_own() -> None:
    payloads = FakePayloads()
    for name, days in (("young", 7), ("old", 9), ("waits", 9)):
        payloads.put(name, b"x")
        payloads.written[f"claims/{name}"] = NOW - timedelta(days=days)
    remove = RemoveClaims(
        cast("Catalogue", InUse(["claims/waits"])),
        payloads,
        clock=lambda: NOW,
        retention=timedelta(days=8),
    )
    assert await remove() == 1
    assert sorted(payloads.objects) == ["claims/waits", "claims/young"]
