"""The process that a package's steps run in, with the packages of their own environment.

`python_package.py` starts it as `ENVIRONMENT/bin/python -I package_worker.py INCOMING OUTGOING FOLDER`: the
pipes' descriptors, and the folder with the package. It needs numpy, of any version, and what lies beside it.
What steps print goes to the log, and never into the pipes.
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

# Its neighbours, which steps must not meet when they import modules of the same names.
sys.path.insert(0, str(Path(__file__).parent))
import confinement
from package_pipe import Closed, Pipe

sys.path.pop(0)
del sys.modules["confinement"], sys.modules["package_pipe"]

import numpy as np  # noqa: E402

MANIFEST = "headrace.json"
# What the protocol has a word for, by numpy's names; texts are apart.
NUMBERS = {
    "bool",
    *("float16", "float32", "float64"),
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
}


class Chain:
    """A package's steps, each one's answer the next one's question."""

    def __init__(self, folder):
        """Import and construct them. Raises Failed, and what is wrong with the manifest."""
        names = json.loads((folder / MANIFEST).read_bytes())["steps"]
        sys.path.insert(0, str(folder))
        self._steps = [(name, _made(name, folder)) for name in names]

    def __call__(self, arrays):
        """Arrays by name for arrays by name. Raises what a step raises, with the step's name before it."""
        for name, step in self._steps:
            try:
                answer = step(arrays)
            except Exception as error:
                raise Failed(f"{name}: {_words(error)}") from error
            if not isinstance(answer, dict):
                raise Failed(f"{name}: it answers {type(answer).__name__}, and no dictionary of arrays")
            arrays = {_key(name, key): _array(name, key, value) for key, value in answer.items()}
        return {key: _sendable(key, array) for key, array in arrays.items()}


class Failed(Exception):  # noqa: N818 - what happened
    """A step is not there, does not answer, or not with arrays."""


def main(incoming, outgoing, folder):
    """Say that the steps are there, and answer until there is nobody to ask."""
    for descriptor in (incoming, outgoing):
        # Programs that steps start would keep the pipes open.
        os.set_inheritable(descriptor, False)
    # Into a pipe, too, line by line: the last words of a worker are read.
    sys.stdout.reconfigure(line_buffering=True)
    pipe = Pipe(incoming, outgoing)
    try:
        answer = Chain(Path(folder))
    except Exception as error:
        traceback.print_exc()
        pipe.send({"failure": _words(error)})
        return
    pipe.send({})
    while True:
        try:
            _, arrays = pipe.receive()
        except Closed:
            return
        failure = ""
        try:
            answers = answer(arrays)
        except Exception as error:
            traceback.print_exc()
            answers, failure = {}, _words(error)
        pipe.send({"failure": failure} if failure else {}, answers)
        if failure and confinement.exhausted():
            sys.exit("its memory is used up")


def _made(name, folder):
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)(folder)
    except Exception as error:
        raise Failed(f"{name}: {_words(error)}") from error


def _words(error):
    """The first line of what went wrong; a step's failure has the kind of error in it already."""
    lines = str(error).splitlines() or [""]
    if isinstance(error, Failed):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__


def _key(step, key):
    if not isinstance(key, str):
        raise Failed(f"{step}: it answers {key!r}, which is no name")
    return key


def _array(step, key, value):
    if not isinstance(value, np.ndarray):
        raise Failed(f"{step}: its {key} is {type(value).__name__}, and no array of numpy's")
    return value


def _sendable(key, array):
    """As the other side's numpy reads it: this machine's bytes for numbers, UTF-8 for texts."""
    if array.dtype.name in NUMBERS:
        return np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    if array.dtype.kind not in "OSTU":
        raise Failed(f"the output {key} is {array.dtype.name}, which the protocol has no word for")
    texts = np.empty(array.size, object)
    for index, item in enumerate(array.astype(object).ravel()):
        if not isinstance(item, str | bytes):
            raise Failed(f"the output {key} has {type(item).__name__} among its texts")
        texts[index] = item.encode(errors="replace") if isinstance(item, str) else item
    return texts.reshape(array.shape)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
