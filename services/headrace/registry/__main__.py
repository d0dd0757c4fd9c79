"""`python -m headrace.registry`: run the service."""

from __future__ import annotations

from headrace.registry.app import NAME, build
from headrace.registry.settings import Settings
from headrace.runtime.main import run
from headrace.runtime.settings import PlatformSettings, load

if __name__ == "__main__":
    settings, platform = load(Settings), load(PlatformSettings)
    run(NAME, settings, platform, lambda runner: build(runner, settings, platform))
