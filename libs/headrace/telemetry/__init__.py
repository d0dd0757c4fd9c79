"""Traces, logs and the names of both; exporting never slows or fails the work that is traced."""

from __future__ import annotations

from headrace.telemetry.provider import Telemetry, setup

__all__ = ["Telemetry", "setup"]
