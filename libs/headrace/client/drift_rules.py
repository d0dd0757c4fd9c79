"""Drift in a pipeline's file: how a deployment is watched, and what follows from an alert."""

from __future__ import annotations

from headrace.api.scheduling.v1 import drift_pb2 as scheduling
from headrace.client.yaml_reader import Document, Place
from headrace.rpc.convert import to_duration


def drift_spec(document: Document, place: Place) -> scheduling.DriftSpec:
    """Read a deployment's `drift`; the service says whether its numbers make sense."""
    entries = document.mapping(place, ("requests", "every", "windows", "min_psi", "confidence"))
    spec = scheduling.DriftSpec(
        requests=document.integer(entries.get("requests"), bits=32),
        windows=document.integer(entries.get("windows"), bits=32),
        min_psi=document.number(entries.get("min_psi")),
        confidence=document.number(entries.get("confidence")),
    )
    if "every" in entries:
        spec.every.CopyFrom(to_duration(document.duration(entries["every"])))
    return spec


def drift_retraining(document: Document, place: Place) -> scheduling.DriftRetraining:
    """Read the `drift` of a pipeline's `retrain`."""
    entries = document.mapping(place, ("cooldown", "max_per_day"))
    retraining = scheduling.DriftRetraining(max_per_day=document.integer(entries.get("max_per_day"), bits=32))
    if "cooldown" in entries:
        retraining.cooldown.CopyFrom(to_duration(document.duration(entries["cooldown"])))
    return retraining
