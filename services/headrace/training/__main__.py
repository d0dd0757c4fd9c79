"""`python -m headrace.training`: run the service."""

from __future__ import annotations

from headrace.runtime.main import run
from headrace.runtime.settings import PlatformSettings, load
from headrace.training.app import NAME, build
from headrace.training.settings import Settings

if __name__ == "__main__":
    settings, platform = load(Settings), load(PlatformSettings)
    run(NAME, settings, platform, lambda runner: build(runner, settings, platform))
