"""Values of fields as they are counted."""

from __future__ import annotations

import hashlib
import json
from typing import Final

# Values are kept and sent, and a text may be a megabyte. Of a longer one, its beginning is for people, and
# a digest of all of it tells it from others that begin alike.
_CHARACTERS: Final = 64
_DIGEST_BYTES: Final = 8


def counted_text(text: str) -> str:
    """What a text is counted as: itself; of a long one the beginning, an ellipsis and a digest."""
    if len(text) <= _CHARACTERS:
        return text
    digest = hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return f"{text[: _CHARACTERS - len(digest) - 1]}…{digest}"


def value_text(value: bool | float | str) -> str:
    """What a value is counted as, as JSON; integers and floats are told apart."""
    return json.dumps(counted_text(value) if isinstance(value, str) else value, ensure_ascii=False)
