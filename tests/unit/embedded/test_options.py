"""What a person may ask of a stack, and what is refused with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.embedded.options import choose
from headrace.errors import InvalidArgument


def test_a_stack_is_embedded_and_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    options = choose(tmp_path)
    assert (options.broker, options.postgres) == ("embedded", "embedded")
    assert options.on_loopback
    assert options.reachable_host == "127.0.0.1"
    assert options.store_uri == (tmp_path / "store").as_uri()


def test_a_relative_store_means_the_same_folder_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose(Path("data"), store="lake").store_uri == (tmp_path / "lake").as_uri()


@pytest.mark.parametrize("store", ["s3://bucket/prefix", "file:///srv/lake"])
def test_a_store_may_be_an_address(tmp_path: Path, store: str) -> None:
    assert choose(tmp_path, store=store).store_uri == store


@pytest.mark.parametrize("broker", ["embedded", "kafka", "kafka.example:9092", "a:9092,b:9092"])
def test_brokers(tmp_path: Path, broker: str) -> None:
    assert choose(tmp_path, broker=broker).broker == broker


def test_listening_on_all_addresses_is_reached_at_the_machines_own(tmp_path: Path) -> None:
    options = choose(tmp_path, host="0.0.0.0")
    assert not options.on_loopback
    assert options.reachable_host != "0.0.0.0"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("broker", "rabbit"),
        ("broker", "a:9092,b"),
        ("postgres", "mysql://somewhere/db"),
        ("store", "ftp://somewhere"),
        ("host", "localhost"),
        ("otlp_endpoint", "collector:4317"),
        ("otlp_endpoint", "https://collector:4317"),
    ],
)
def test_anything_else_is_refused_by_name(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        choose(tmp_path, **{option: value})
    assert raised.value.reason == "INVALID_STACK_OPTION"
    assert [field.field for field in raised.value.fields] == [option]
    assert value in raised.value.message
