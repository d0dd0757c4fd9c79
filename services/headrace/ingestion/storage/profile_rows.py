"""Profiles as rows of `version_profiles`, a row for each field."""

from __future__ import annotations

import json
from collections.abc import Sequence

import asyncpg

from headrace.ingestion.domain.profile import FieldProfile, Moments, Profile, ValueCounts, number_count
from headrace.ingestion.domain.schema import FieldType


def profile_columns(profile: Profile) -> Sequence[Sequence[object]]:
    """The rows' columns from `position` on."""
    fields = profile.fields
    moments = [field.moments if field.moments and field.moments.count else None for field in fields]
    return [
        range(len(fields)),
        [field.name for field in fields],
        [field.type.value for field in fields],
        [field.count for field in fields],
        [field.null_count for field in fields],
        [found.min if found else None for found in moments],
        [found.max if found else None for found in moments],
        [found.mean if found else None for found in moments],
        [found.squares if found else None for found in moments],
        [field.quantiles for field in fields],
        [json.dumps(dict(field.values.counts)) if field.values else None for field in fields],
        [field.values.error if field.values else None for field in fields],
    ]


def field_profile(row: asyncpg.Record) -> FieldProfile:
    """One row's field."""
    moments = None
    if row["mean"] is not None:
        moments = Moments(number_count(row["quantiles"]), row["min"], row["max"], row["mean"], row["squares"])
    return FieldProfile(
        row["name"],
        FieldType(row["type"]),
        row["count"],
        row["null_count"],
        moments,
        row["quantiles"],
        ValueCounts(row["values"], row["values_error"]) if row["values"] is not None else None,
    )
