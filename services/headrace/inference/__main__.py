"""`python -m headrace.inference`: run the service."""

from __future__ import annotations

from typing import Final

from headrace.inference.app import NAME, build
from headrace.inference.settings import Settings
from headrace.runtime.main import run
from headrace.runtime.settings import PlatformSettings, load

# Some hundred requests and a thousand predictions are on their way at once, dozens of objects each.
NEW_OBJECTS: Final = 100_000

if __name__ == "__main__":
    settings, platform = load(Settings), load(PlatformSettings)
    run(NAME, settings, platform, lambda runner: build(runner, settings, platform), new_objects=NEW_OBJECTS)
