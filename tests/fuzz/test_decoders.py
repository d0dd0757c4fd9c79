"""A short run of the fuzzer, for whoever changes a decoder. `make fuzz` searches for longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("target", ["records", "json", "protobuf", "avro", "messages", "envelopes"])
def test_no_bytes_break_a_decoder(target: str, tmp_path: Path) -> None:
    # The peak that libFuzzer compares begins at what this process has, which its own is forked from.
    options = ["-runs=300", "-seed=1", "-timeout=60", "-rss_limit_mb=8192", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.decoders", target, *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Done 300 runs" in done.stderr
