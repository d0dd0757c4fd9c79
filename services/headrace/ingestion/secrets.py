"""The key ring, from where the settings say that it is."""

from __future__ import annotations

from pathlib import Path

from headrace.errors import InvalidArgument
from headrace.ingestion.domain.key_ring import KeyRing, parse_keys
from headrace.ingestion.settings import Settings


def key_ring(settings: Settings) -> KeyRing:
    """Read the keys. Raises InvalidArgument INVALID_KEY_RING."""
    value = settings.privacy_keys.get_secret_value()
    if not settings.privacy_keys_file:
        return parse_keys(value)
    if value:
        raise InvalidArgument("INVALID_KEY_RING", "name a file of keys or give their values, not both")
    try:
        text = Path(settings.privacy_keys_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument("INVALID_KEY_RING", f"the file of keys cannot be read: {error}") from error
    return parse_keys(text)
