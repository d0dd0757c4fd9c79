"""`python -m headrace.scheduling`."""

from __future__ import annotations

from functools import partial

from headrace.runtime.main import run
from headrace.runtime.settings import PlatformSettings, load
from headrace.scheduling.app import NAME, build
from headrace.scheduling.settings import Settings

if __name__ == "__main__":
    settings, platform = load(Settings), load(PlatformSettings)
    run(NAME, settings, platform, partial(build, settings, platform))
