"""`python -m headrace.inference`: run the service."""

from __future__ import annotations

from headrace.inference.app import NAME, build
from headrace.inference.settings import Settings
from headrace.runtime.main import run
from headrace.runtime.settings import PlatformSettings, load

if __name__ == "__main__":
    settings, platform = load(Settings), load(PlatformSettings)
    run(NAME, settings, platform, lambda runner: build(runner, settings, platform))
