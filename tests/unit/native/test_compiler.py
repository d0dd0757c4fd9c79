from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("sums", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.add(1, 2))
"""


def test_a_function_is_compiled_where_no_cache_can_be_written(tmp_path: Path) -> None:
    module = tmp_path / "sums.py"
    module.write_text(
        "from headrace.native import compiled\n\n\n@compiled\ndef add(a, b):\n    return a + b\n"
    )
    # A file in the place of each folder in which it would be kept.
    (tmp_path / "__pycache__").touch()
    nowhere = tmp_path / "nowhere"
    nowhere.touch()
    environment = {**os.environ, "HOME": str(nowhere), "XDG_CACHE_HOME": str(nowhere)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(module)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
