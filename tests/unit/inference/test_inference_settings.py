"""Several Triton servers are named in two lists of one length."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from headrace.inference.settings import Settings


def test_each_server_has_its_two_addresses() -> None:
    settings = Settings(triton_grpc="a:8001, b:8001", triton_http="a:8000,b:8000")
    assert settings.triton_servers == (("a:8001", "a:8000"), ("b:8001", "b:8000"))


@pytest.mark.parametrize(("grpc", "http"), [("a:8001,b:8001", "a:8000"), ("", ""), (",", "a:8000")])
def test_lists_that_do_not_match_are_refused(grpc: str, http: str) -> None:
    with pytest.raises(ValidationError, match="name each in both, in one order"):
        Settings(triton_grpc=grpc, triton_http=http)
