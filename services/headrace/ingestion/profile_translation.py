"""Profiles and their comparison in the contract's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from headrace.api.ingestion.v1 import versions_pb2 as api
from headrace.ingestion.domain.comparison import (
    common_bounds,
    histogram,
    kolmogorov_smirnov,
    population_stability_index,
)
from headrace.ingestion.domain.profile import RANK_ERROR, FieldProfile, Profile, quantiles
from headrace.ingestion.translation import type_to_message
from headrace.ingestion.use_cases.versions import FieldPair

_RANKS: Final = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS: Final = 16
_TOP_VALUES: Final = 20


def profile_to_message(profile: Profile, quantile_count: int = 0) -> api.Profile:
    """What people and programs read of it; sketches stay here.

    With so many quantiles at even ranks; 0: the usual ones.
    """
    ranks = [place / (quantile_count + 1) for place in range(1, quantile_count + 1)] or _RANKS
    return api.Profile(
        row_count=profile.row_count,
        fields=[field_profile_to_message(field, ranks) for field in profile.fields],
        rank_error=RANK_ERROR,
    )


def field_profile_to_message(field: FieldProfile, ranks: Sequence[float] = _RANKS) -> api.FieldProfile:
    """One field of a profile."""
    message = api.FieldProfile(
        name=field.name,
        type=type_to_message(field.type),
        count=field.count,
        null_count=field.null_count,
    )
    moments = field.moments
    if moments is not None and moments.count:
        message.numbers.CopyFrom(
            api.NumberProfile(
                min=moments.min,
                max=moments.max,
                mean=moments.mean,
                deviation=moments.deviation,
                quantiles=[
                    api.Quantile(rank=rank, value=value)
                    for rank, value in zip(ranks, quantiles(field, ranks), strict=True)
                ],
                histogram=histogram(field, _BINS),
            )
        )
    if field.values is not None:
        top = field.values.most_frequent(_TOP_VALUES)
        message.top_values.extend(api.ValueCount(value=value, count=count) for value, count in top.items())
        message.top_values_error = field.values.error
    return message


def pair_to_message(pair: FieldPair) -> api.FieldDiff:
    """One field in two versions, with how far they are apart."""
    base, other = pair.base, pair.other
    message = api.FieldDiff(
        name=pair.name,
        base=field_profile_to_message(base) if base else None,
        other=field_profile_to_message(other) if other else None,
    )
    if base and other:
        bounds = common_bounds(base, other)
        message.MergeFrom(
            api.FieldDiff(
                psi=population_stability_index(base, other),
                ks=kolmogorov_smirnov(base, other),
                base_histogram=histogram(base, _BINS, bounds) if bounds else None,
                other_histogram=histogram(other, _BINS, bounds) if bounds else None,
            )
        )
    return message
