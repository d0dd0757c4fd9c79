"""Samples that break the dataset's schema, and one of them mended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from examples.shared.samples import Record, load


def break_five(records: Sequence[Record]) -> list[Record]:
    """The same records, the first five of them broken in five ways."""
    first, second, third, fourth, fifth, *rest = records
    row = json.loads(second.value)
    missing = {name: value for name, value in row.items() if name != "mean_texture"}
    negative = {**json.loads(third.value), "mean_radius": -1.0}
    unknown_class = {**json.loads(fourth.value), "malignant": 7}
    nowhere = [(k, b"no-such-dataset" if k == "ce_subject" else v) for k, v in fifth.headers]
    return [
        replace(first, value=first.value[:40]),
        replace(second, value=json.dumps(missing).encode()),
        replace(third, value=json.dumps(negative).encode()),
        replace(fourth, value=json.dumps(unknown_class).encode()),
        replace(fifth, headers=nowhere),
        *rest,
    ]


def with_true_radius(payload: bytes) -> bytes:
    """The sample with the radius that was measured."""
    row = json.loads(payload)
    [sample] = [sample for sample in load() if sample.patient_id == row["patient_id"]]
    return json.dumps({**row, "mean_radius": sample.features["mean_radius"]}).encode()
