"""Which requests `deploy/triton/sampling.py` has logged."""

from __future__ import annotations

import json
import uuid
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.triton_code import triton_module

SAMPLED = json.dumps({"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})


@pytest.fixture(scope="module")
def sampling() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        return triton_module("sampling", patch)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["counted", "random", "without"])
def test_so_many_requests_are_logged_whatever_their_ids_are(
    sampling: ModuleType, share: float, kind: str
) -> None:
    ids = {
        "counted": [str(number) for number in range(20_000)],
        "random": [str(uuid.UUID(int=number << 64)) for number in range(20_000)],
        "without": [""] * 20_000,
    }[kind]
    taken = sum(sampling.Sampling(share).takes(one, "") for one in ids)
    # Five standard deviations: of ids by chance one run in two million has more.
    assert abs(taken - share * len(ids)) <= 5 * (len(ids) * share * (1 - share)) ** 0.5


@given(st.text(), st.floats(0, 1), st.floats(0, 1))
def test_one_id_is_decided_alike_and_a_larger_share_has_all_of_a_smaller_one(
    sampling: ModuleType, own_id: str, one: float, other: float
) -> None:
    small, large = (sampling.Sampling(share) for share in sorted((one, other)))
    own_id = own_id or "-"
    assert small.takes(own_id, "") == small.takes(own_id, SAMPLED)
    assert large.takes(own_id, "") or not small.takes(own_id, "")


def test_both_answers_of_a_request_without_an_id_are_decided_alike(sampling: ModuleType) -> None:
    half = sampling.Sampling(0.5)
    for number in range(100):
        mirrored = json.dumps({"x-headrace-mirror-id": str(number)})
        copy = json.dumps({"x-headrace-shadow-version": "2", "x-headrace-mirror-id": str(number)})
        assert half.takes("", mirrored) == half.takes("", copy) == half.takes(str(number), "")


@pytest.mark.parametrize("parameters", ['{"x-headrace-mirror-id": 1}', "x-headrace-mirror-id", "[]", "?"])
def test_parameters_of_any_kind_stop_nothing(sampling: ModuleType, parameters: str) -> None:
    assert sampling.Sampling(1.0).takes("", parameters)
    assert not sampling.Sampling(0.0).takes("", parameters)


def test_a_span_is_wanted_of_recorded_traces_alone(sampling: ModuleType) -> None:
    assert sampling.is_traced(SAMPLED)
    assert not sampling.is_traced(SAMPLED.replace("-01", "-00"))
    assert not sampling.is_traced("")
