from __future__ import annotations

from typing import cast

import asyncpg
import pyarrow as pa

from headrace.ingestion.domain.profile import Profile, extended, is_extensible
from headrace.ingestion.domain.schema import Field, FieldType, Schema
from headrace.ingestion.storage.profile_rows import field_profile, profile_columns

SCHEMA = Schema("id", (Field("x", FieldType.FLOAT64, nullable=True),), Field("y", FieldType.BOOL))
COLUMNS = (
    *("position", "name", "type", "count", "null_count", "min", "max", "mean", "squares"),
    *("quantiles", "values", "values_error"),
)


def stored(profile: Profile, **changes: object) -> Profile:
    """What is read of the profile's rows, of which the feature's was changed."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*profile_columns(profile), strict=True)]
    rows[1] |= changes
    fields = [field_profile(cast("asyncpg.Record", row | {"values": None})) for row in rows]
    return Profile(profile.row_count, tuple(fields))


def test_moments_are_of_the_numbers_that_were_seen() -> None:
    batch = pa.record_batch({"x": [1.0, 2.0, None]})
    sound = extended(None, SCHEMA, [batch])
    assert is_extensible(stored(sound), SCHEMA)
    assert stored(sound).fields[1] == sound.fields[1]
    # As a release that did not look at the rows of before would have it.
    partial = stored(sound, count=1000)
    moments = partial.fields[1].moments
    assert moments is not None
    assert moments.count == 2
    assert not is_extensible(partial, SCHEMA)
