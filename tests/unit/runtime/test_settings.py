from __future__ import annotations

import pytest
from pydantic import ValidationError

from headrace.runtime import clock, ids
from headrace.runtime.http import split_address
from headrace.runtime.resources import deploy_path
from headrace.runtime.settings import PlatformSettings, load


def test_settings_come_from_the_environment_and_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA_BOOTSTRAP", "broker:9092")
    monkeypatch.setenv("HEADRACE_KAFKA_IDEMPOTENCE", "false")
    settings = load(PlatformSettings)
    assert (settings.kafka_bootstrap, settings.kafka_idempotence) == ("broker:9092", False)
    with pytest.raises(ValidationError):
        settings.kafka_bootstrap = "other"  # type: ignore[misc]


def test_a_wrong_value_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADRACE_DRAIN_SECONDS", "soon")
    with pytest.raises(SystemExit) as exit_info:
        load(PlatformSettings)
    assert exit_info.value.code == 2
    assert "HEADRACE_DRAIN_SECONDS='soon'" in capsys.readouterr().err


def test_deployed_files_are_found_in_a_checkout() -> None:
    assert deploy_path("triton/requirements.lock").is_file()
    with pytest.raises(FileNotFoundError, match="deploy/nothing is not installed"):
        deploy_path("nothing")


@pytest.mark.parametrize(
    ("address", "parts"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:80", ("::1", 80)), (":80", ("", 80))],
)
def test_an_address_splits_into_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["localhost", "localhost:", "localhost:http"])
def test_a_wrong_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="write host:port"):
        split_address(address)


def test_the_clock_is_aware_and_ids_differ() -> None:
    assert clock.utc_now().utcoffset() is not None
    assert ids.new_id() != ids.new_id()
