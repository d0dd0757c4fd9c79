"""By which version of its dataset's schema a sample was written: CloudEvents' `dataschema`.

It ends with `datasets/NAME/schemas/VERSION`, or is the version alone. What else stands there is somebody
else's name for a schema, and says nothing here.
"""

from __future__ import annotations

import re
from typing import Final

from headrace.messaging.events import Event

ATTRIBUTE: Final = "dataschema"
NO_VERSION: Final = 0
"""What no schema has as its version."""

_ADDRESS: Final = re.compile(r"(?:.*/)?datasets/([^/]*)/schemas/([^/]*)", re.DOTALL)
_DIGITS: Final = re.compile(r"[0-9]+")
# PostgreSQL's integer holds nine digits.
_VERSION: Final = re.compile(r"[1-9][0-9]{0,8}")


def dataschema(dataset: str, version: int) -> str:
    """The attribute of a sample that was written by that version."""
    return f"datasets/{dataset}/schemas/{version}"


def schema_version(event: Event) -> int | None:
    """The version that a sample names, `NO_VERSION` where it is none of its dataset; None: it names none."""
    written = event.extensions.get(ATTRIBUTE, "")
    if address := _ADDRESS.fullmatch(written):
        dataset, version = address.groups()
    elif _DIGITS.fullmatch(written):
        dataset, version = event.subject, written
    else:
        return None
    return int(version) if dataset == event.subject and _VERSION.fullmatch(version) else NO_VERSION
