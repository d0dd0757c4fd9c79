"""`make drift`: a scanner is replaced; the platform notices, trains again, tries the version, and recovers.

Usage: python -m examples.drift [--broker embedded|kafka] [--keep]   in a stack of its own
       python -m examples.drift --data FOLDER                        in a stack that runs, once
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.drift.story import tell
from examples.shared.stack import in_own_stack, in_stack


def main() -> int:
    """Run the example; 0 only if the whole way was gone."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", default="embedded", help="embedded, kafka or HOST:PORT")
    parser.add_argument("--keep", action="store_true", help="keep the data folder")
    parser.add_argument("--data", type=Path, help="the data folder of a stack that runs")
    arguments = parser.parse_args()
    if arguments.data:
        return in_stack("drift", tell, arguments.data)
    return in_own_stack("drift", tell, broker=arguments.broker, keep=arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
