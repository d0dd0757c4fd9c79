"""What consumers and outboxes count."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter

from headrace.telemetry import names

HANDLED: Final = Counter(
    names.METRIC_MESSAGING_HANDLED.removesuffix("_total"),
    "Events that a handler took, by topic and consumer group",
    ["topic", "group"],
)
RETRIES: Final = Counter(
    names.METRIC_MESSAGING_RETRIES.removesuffix("_total"),
    "Tries of a handler that failed and are made again, by topic and consumer group",
    ["topic", "group"],
)
DEAD_LETTERS: Final = Counter(
    names.METRIC_MESSAGING_DEAD_LETTERS.removesuffix("_total"),
    "Events set aside, by topic, consumer group and reason",
    ["topic", "group", "reason"],
)
RELAYED: Final = Counter(
    names.METRIC_MESSAGING_RELAYED.removesuffix("_total"),
    "Events published from the outbox, by topic",
    ["topic"],
)
