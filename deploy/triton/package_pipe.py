"""What a model's process and the worker of its package say to each other: documents, and arrays as raw bytes.

A message is the length of its JSON in four bytes, the JSON, and the arrays that it lists. Of an array of
texts each is written behind its length, as in Triton. Nothing is pickled: no message makes anybody run code.
"""

import fcntl
import json
import os
import select
import struct
from contextlib import suppress
from itertools import chain

import numpy as np

LENGTH = struct.Struct("<I")
# What the kernel holds while nobody reads: as much as it allows without privileges.
PIPE_BYTES = 1 << 20
# How often whoever waits is asked whether it should go on.
LOOK_MILLISECONDS = 100
# More buffers in one call the kernel does not take.
MOST_BUFFERS = 1000


class Closed(Exception):  # noqa: N818 - what happened
    """The other side has ended."""


class Pipe:
    """One side of the conversation: a descriptor to read from, and one to write to."""

    def __init__(self, incoming, outgoing):
        self._incoming = incoming
        self._outgoing = outgoing

    def send(self, document, arrays=(), wait=None):
        """Write a JSON document and arrays by name.

        `wait`, which descriptors that do not block need, is called each moment that the other side lets pass;
        it raises to give up. Raises Closed.
        """
        tensors, buffers = [], []
        for name, array in dict(arrays).items():
            data = _texts(array) if array.dtype == object else np.ascontiguousarray(array).reshape(-1)
            view = memoryview(data).cast("B") if len(data) else memoryview(b"")
            tensors.append([name, array.dtype.str, array.shape, view.nbytes])
            buffers.append(view)
        head = json.dumps({**document, "arrays": tensors}).encode()
        left = [memoryview(LENGTH.pack(len(head)) + head), *filter(None, buffers)]
        while left:
            try:
                count = os.writev(self._outgoing, left[:MOST_BUFFERS])
            except BlockingIOError:
                _until(self._outgoing, select.POLLOUT, wait)
                continue
            except BrokenPipeError:
                raise Closed from None
            while left and count >= left[0].nbytes:
                count -= left.pop(0).nbytes
            if count:
                left[0] = left[0][count:]

    def receive(self, wait=None):
        """(document, arrays by name). `wait` as of `send`. Raises Closed."""
        (length,) = LENGTH.unpack(self._bytes(LENGTH.size, wait))
        document = json.loads(self._bytes(length, wait))
        arrays = {}
        for name, kind, shape, size in document.pop("arrays"):
            if kind == "|O":
                arrays[name] = _array_of_texts(self._bytes(size, wait), shape)
            else:
                array = np.empty(shape, kind)
                if size:
                    self._fill(memoryview(array.reshape(-1)).cast("B"), wait)
                arrays[name] = array
        return document, arrays

    def _bytes(self, size, wait):
        data = bytearray(size)
        self._fill(memoryview(data), wait)
        return data

    def _fill(self, view, wait):
        while view:
            try:
                count = os.readv(self._incoming, [view])
            except BlockingIOError:
                _until(self._incoming, select.POLLIN, wait)
                continue
            if not count:
                raise Closed
            view = view[count:]


def widened(descriptor):
    """A pipe's end that holds more; a smaller one works, too."""
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return descriptor


def _until(descriptor, event, wait):
    poll = select.poll()
    poll.register(descriptor, event)
    while not poll.poll(LOOK_MILLISECONDS):
        wait()


def _texts(array):
    return b"".join(chain.from_iterable((LENGTH.pack(len(text)), text) for text in array.ravel()))


def _array_of_texts(data, shape):
    texts = np.empty(int(np.prod(shape)), object)
    place = 0
    for index in range(len(texts)):
        (length,) = LENGTH.unpack_from(data, place)
        place += LENGTH.size + length
        texts[index] = bytes(data[place - length : place])
    return texts.reshape(shape)
