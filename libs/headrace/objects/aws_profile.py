"""The keys of a profile in `~/.aws`, as AWS's own tools read them.

The libraries that talk to S3 take keys from the environment, from a web identity's token, and from the
container's or the instance's role, and know nothing of these files.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from headrace.errors import InvalidArgument

# Whatever says in the environment where credentials come from counts more, or comes from whoever runs this.
_STRONGER: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_KEYS: Final = ("aws_access_key_id", "aws_secret_access_key")
_OTHERS: Final = ("aws_session_token", "region")


def profile_credentials(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """The keys, the token and the region of the profile that `AWS_PROFILE` names, or of "default".

    By the names of the environment's variables; {} where there is no such profile, or where the environment
    says itself where credentials come from. A region there counts more than the profile's.
    Raises InvalidArgument AWS_PROFILE_WITHOUT_KEYS where `AWS_PROFILE` names one that has none: roles, single
    sign-on and processes of profiles are not followed.
    """
    if any(environment.get(name) for name in _STRONGER):
        return {}
    named = environment.get("AWS_PROFILE", "")
    profile = named or "default"
    credentials = environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials"
    config = environment.get("AWS_CONFIG_FILE") or home / ".aws" / "config"
    section = "default" if profile == "default" else f"profile {profile}"
    # The credentials file counts more.
    found = {**_section(Path(config), section), **_section(Path(credentials), profile)}
    if not all(found.get(name) for name in _KEYS):
        if named:
            raise InvalidArgument(
                "AWS_PROFILE_WITHOUT_KEYS",
                f"AWS_PROFILE names {named!r}, and {credentials} and {config} have no keys of it "
                "(aws_access_key_id, aws_secret_access_key); set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or name a profile that has keys",
            )
        return {}
    kept = {
        name.upper() if name != "region" else "AWS_REGION": found[name]
        for name in (*_KEYS, *_OTHERS)
        if found.get(name)
    }
    if environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"):
        kept.pop("AWS_REGION", None)
    return kept


def _section(path: Path, name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.expanduser().read_text(errors="replace"))
    except OSError:
        return {}
    except configparser.Error as error:
        raise InvalidArgument("INVALID_AWS_PROFILE", f"{path} cannot be read: {error}") from error
    return dict(parser[name]) if parser.has_section(name) else {}
