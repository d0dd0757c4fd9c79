"""`make demo`: the whole path on real data, from events to predictions, in a stack of its own.

Usage: python -m examples.demo [--broker embedded|kafka] [--keep]
"""

from __future__ import annotations

import argparse
import sys

from examples.demo.story import tell
from examples.shared.stack import SUCCEEDED, in_own_stack
from examples.shared.stages import console

NEXT = """
What next:
  make up                                                      start a stack and leave it running
  . .venv/bin/activate
  headrace status                                              every part, its address and its log
  headrace apply -f examples/breast-cancer/pipeline.yaml       the pipeline of this demo
  python examples/linear-regression/run.py                     another one, on that stack
  headrace get jobs --watch | headrace events --follow | headrace --help
  make down
  make drift                                                   data that shifts, and what follows from it
"""


def main() -> int:
    """Run the demo; 0 only if every step's result is right."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", default="embedded", help="embedded, kafka or HOST:PORT")
    parser.add_argument("--keep", action="store_true", help="keep the data folder")
    arguments = parser.parse_args()
    code = in_own_stack("demo", tell, broker=arguments.broker, keep=arguments.keep)
    if code == SUCCEEDED:
        console.print(NEXT)
    return code


if __name__ == "__main__":
    sys.exit(main())
