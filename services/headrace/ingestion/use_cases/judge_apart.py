"""Events that a fault of this service keeps from being judged, told from their neighbours.

To judge is pure computation: what fails once fails each time, and without this the batch would wait for
ever for one event of it.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Final

import pyarrow as pa

from headrace.errors import HeadraceError
from headrace.ingestion.domain.rejection import Reason, Verdict
from headrace.ingestion.use_cases.envelopes import Opened
from headrace.ingestion.use_cases.judge_batch import Judged, rejected_alone

logger = logging.getLogger(__name__)

MOST_FAULTS: Final = 100
"""Of one batch: where more events fail, the events are not what is at fault, and the batch waits."""


def judge_apart(cluster: str, opened: Opened, judge: Callable[[Opened], Judged]) -> Judged:
    """All events judged; those at which `judge` fails, each by itself, are rejected as INTERNAL.

    Raises HeadraceError and MemoryError as `judge` does, and what it raises for more than MOST_FAULTS events.
    """
    judged, faults = Judged(), 0
    waiting = [opened]
    while waiting:
        some = waiting.pop()
        try:
            part = judge(some)
        except (HeadraceError, MemoryError):
            # A key that is missing, say: none of an event's own.
            raise
        except Exception as error:
            if len(some) > 1:
                # The first half is the next.
                waiting += reversed(some.halves())
                continue
            faults += 1
            if faults > MOST_FAULTS:
                raise
            part = Judged(rejections=[rejected_alone(cluster, some, _verdict(error))])
        _add(judged, part)
    return judged


def _add(judged: Judged, part: Judged) -> None:
    judged.rejections += part.rejections
    for name, rows in part.rows.items():
        earlier = judged.rows.get(name)
        judged.rows[name] = rows if earlier is None else pa.concat_tables([earlier, rows])


def _verdict(error: Exception) -> Verdict:
    # Neither the error's words nor its values: they may be the event's.
    last = traceback.extract_tb(error.__traceback__)[-1]
    kind = type(error).__name__
    logger.error("an event could not be judged: %s in %s, line %s", kind, last.name, last.lineno)
    return Verdict(
        Reason.INTERNAL,
        f"the service failed at the event ({kind}): the fault is its own; replay it once that is mended",
        rule="judge",
    )
