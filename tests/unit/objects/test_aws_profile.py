"""Which keys a profile gives, and when it gives none."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import InvalidArgument
from headrace.objects.aws_profile import profile_credentials

CREDENTIALS = """
[default]
aws_access_key_id = one
aws_secret_access_key = two%three

[lab]
aws_access_key_id = four
aws_secret_access_key = five
aws_session_token = six
"""
CONFIG = """
[default]
region = eu-west-1

[profile lab]
region = eu-central-1
aws_access_key_id = stale

[profile role]
role_arn = arn:aws:iam::1:role/reader
source_profile = default
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(CREDENTIALS)
    (folder / "config").write_text(CONFIG)
    return tmp_path


def test_without_a_name_it_is_the_default_profile(home: Path) -> None:
    assert profile_credentials({}, home) == {
        "AWS_ACCESS_KEY_ID": "one",
        "AWS_SECRET_ACCESS_KEY": "two%three",
        "AWS_REGION": "eu-west-1",
    }


def test_a_named_profile_has_its_token_and_its_region_and_the_credentials_file_counts_more(
    home: Path,
) -> None:
    assert profile_credentials({"AWS_PROFILE": "lab"}, home) == {
        "AWS_ACCESS_KEY_ID": "four",
        "AWS_SECRET_ACCESS_KEY": "five",
        "AWS_SESSION_TOKEN": "six",
        "AWS_REGION": "eu-central-1",
    }


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_environments_region_counts_more(home: Path, name: str) -> None:
    assert "AWS_REGION" not in profile_credentials({name: "us-east-1"}, home)


@pytest.mark.parametrize(
    "name",
    [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ],
)
def test_who_says_in_the_environment_where_keys_come_from_gets_none_of_a_profile(
    home: Path, name: str
) -> None:
    assert profile_credentials({name: "x", "AWS_PROFILE": "lab"}, home) == {}


def test_files_may_lie_elsewhere(home: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "keys"
    elsewhere.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    found = profile_credentials({"AWS_SHARED_CREDENTIALS_FILE": str(elsewhere)}, home)
    assert found["AWS_ACCESS_KEY_ID"] == "a"


def test_without_files_there_is_nothing(tmp_path: Path) -> None:
    assert profile_credentials({}, tmp_path) == {}


@pytest.mark.parametrize("profile", ["role", "nobody"])
def test_a_profile_that_was_named_and_has_no_keys_is_refused(home: Path, profile: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        profile_credentials({"AWS_PROFILE": profile}, home)
    assert refused.value.reason == "AWS_PROFILE_WITHOUT_KEYS"


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text("aws_access_key_id = a\n")
    with pytest.raises(InvalidArgument, match="credentials cannot be read") as refused:
        profile_credentials({}, tmp_path)
    assert refused.value.reason == "INVALID_AWS_PROFILE"
