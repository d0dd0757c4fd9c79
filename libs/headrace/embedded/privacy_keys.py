"""The key ring of a stack: made once, beside its data, for its own user alone."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path
from typing import Final

FILE: Final = "privacy-keys"
_KEY_BYTES: Final = 32
_HEAD: Final = """\
# The keys that personal data is covered with; without them, what was encrypted is lost. The last one writes:
# to replace it, add another one below, with an id of its own, and start the stack anew.
"""


def ensure_keys(data: Path) -> None:
    """Make a key ring in the data folder where there is none."""
    path = data / FILE
    if path.exists():
        return
    key = base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
    fresh = path.with_suffix(".new")
    # Whole or not at all: half a key would be kept for ever.
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"{_HEAD}k1={key}\n")
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
