"""A Python package that answers outside Triton: `python -I package_host.py ARCHIVE OUTPUT UNTIL`.

Whoever starts it writes questions to its standard input, and reads answers from its standard output: each is
a length of four bytes, big-endian, and JSON, with bytes in URL-safe base64. First it says whether the package
is there, which must be by UNTIL of the monotonic clock. It ends, with all that the package has started, when
its input does, and at SIGTERM.
"""

import base64
import json
import os
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path

# Isolated as it is started, it does not know its neighbours.
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
from model_files import Ended
from python_package import Package

LENGTH = struct.Struct(">I")


class Asked(Package):
    """A package whose folders nobody needs for longer than it runs."""

    _worker = None

    def __init__(self, *wish):
        # Before there is anything to end.
        signal.signal(signal.SIGTERM, self._end)
        super().__init__(*wish)

    def _end(self, *_):
        """End all at once: an exception would find its way past what is being closed at the same moment."""
        if self._worker is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._worker.pid, signal.SIGKILL)
        os._exit(0)

    def _take(self, root, key, path, fill):
        return super()._take(root, key, path.with_name("nobody"), fill)


def main(archive, output, until):
    """Answer until there is nobody to ask."""
    package = None
    try:
        try:
            package = Asked(archive, [], [output], until)
        except Exception as error:
            reply({"failure": str(error)})
            return
        reply({})
        while header := sys.stdin.buffer.read(LENGTH.size):
            question = json.loads(sys.stdin.buffer.read(*LENGTH.unpack(header)))
            try:
                answers = package(arrays(question), lambda: True)[output]
                values = np.asarray(answers, "<f8").reshape(len(answers), -1)
                reply({"values": base64.urlsafe_b64encode(values.tobytes()).decode()})
            except Ended as error:
                reply({"failure": str(error)})
                return
            except Exception as error:
                reply({"failure": str(error)})
    finally:
        if package is not None:
            package.close()


def arrays(question):
    """The inputs by name: numbers as FP32, texts as bytes."""
    rows = question["rows"]
    found = {}
    if question["numbers"]:
        data = base64.urlsafe_b64decode(question["data"])
        found[question["numbers"]] = np.frombuffer(data, "<f4").reshape(rows, -1)
    if question["texts"]:
        texts = [[text.encode() for text in row] for row in question["words"]]
        found[question["texts"]] = np.array(texts, object).reshape(rows, -1)
    return found


def reply(document):
    """Write one answer."""
    data = json.dumps(document).encode()
    sys.stdout.buffer.write(LENGTH.pack(len(data)) + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
