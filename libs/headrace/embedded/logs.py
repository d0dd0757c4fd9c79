"""Logs of running parts, kept from filling the disk."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

# Of a log that has grown beyond this, so much of its end is set aside, as `<name>.log.1`.
MAX_LOG_BYTES: Final = 16 << 20
LOOK_SECONDS: Final = 1.0


async def keep_small(logs: Sequence[Path]) -> None:
    """Trim the logs when they have grown too large, until cancelled."""
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for log in logs:
            try:
                await asyncio.to_thread(trim, log)
            except OSError as error:
                # A disk that is full already, say: the next look tries again.
                logger.warning("%s cannot be trimmed: %s", log, error)


def trim(log: Path) -> None:
    """Set the end of a log that is too large aside, and empty it. Raises OSError.

    Its writers append, and go on at its new beginning; what they write meanwhile may be lost.
    """
    if not log.exists() or log.stat().st_size <= MAX_LOG_BYTES:
        return
    with log.open("rb") as file:
        file.seek(-MAX_LOG_BYTES, os.SEEK_END)
        aside = log.with_suffix(".log.1")
        aside.write_bytes(file.read(MAX_LOG_BYTES))
    os.truncate(log, 0)
