"""The broker that tests run against: the embedded one, or Apache Kafka with HEADRACE_TEST_BROKER=kafka."""

from __future__ import annotations

import os
from pathlib import Path

from headrace.embedded.parts import free_port
from headrace.embedded.parts.kafka import ApacheKafka
from headrace.embedded.parts.tansu import Tansu


def new_broker(folder: Path) -> ApacheKafka | Tansu:
    """One that is not started."""
    if os.environ.get("HEADRACE_TEST_BROKER") == "kafka":
        return ApacheKafka(folder / "kafka", folder / "logs", free_port(), free_port())
    return Tansu(folder / "tansu", folder / "logs", free_port())
