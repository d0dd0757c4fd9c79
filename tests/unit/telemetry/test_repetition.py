from __future__ import annotations

import logging

from headrace.telemetry.logs import RepetitionFilter


def said(logger: str, message: str, at: float, *, line: int = 1) -> logging.LogRecord:
    record = logging.LogRecord(logger, logging.ERROR, "client.py", line, message, (), None)
    record.created = at
    return record


def passed(repetition: RepetitionFilter, record: logging.LogRecord) -> str:
    return record.getMessage() if repetition.filter(record) else ""


def test_what_a_library_repeats_is_said_once_in_a_while_with_how_often() -> None:
    repetition = RepetitionFilter()
    assert passed(repetition, said("aiokafka.conn", "node 1 is away", 100.0)) == "node 1 is away"
    for hundredth in range(500):
        assert not passed(repetition, said("aiokafka.conn", "node 1 is away", 100 + hundredth / 100))
    assert passed(repetition, said("aiokafka.conn", "node 2 is away", 131.0)) == (
        "node 2 is away (and 500 more like it)"
    )
    assert passed(repetition, said("aiokafka.conn", "node 2 is away", 162.0)) == "node 2 is away"


def test_another_line_of_the_library_is_said_at_once() -> None:
    repetition = RepetitionFilter()
    assert passed(repetition, said("aiokafka.conn", "node 1 is away", 100.0))
    assert passed(repetition, said("aiokafka.conn", "no metadata", 100.0, line=2))


def test_what_the_platform_says_always_comes_through() -> None:
    repetition = RepetitionFilter()
    for _ in range(3):
        assert passed(repetition, said("headrace.messaging.consumer", "dead letter", 100.0))
