"""What a model's process and the worker of its package say to each other."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tests.support.triton_code import triton_module

NUMBERS = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(endianness="<"),
    arrays.unsigned_integer_dtypes(endianness="<"),
    arrays.floating_dtypes(endianness="<", sizes=(16, 32, 64)),
)
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
TENSORS = st.one_of(
    arrays.arrays(NUMBERS, SHAPES),
    arrays.arrays(np.dtype(object), SHAPES, elements=st.binary(max_size=20), fill=st.nothing()),
)


@pytest.fixture
def package_pipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return triton_module("package_pipe", monkeypatch)


@pytest.fixture
def ends() -> Iterator[tuple[int, int]]:
    """A pipe's: to read from, and to write to."""
    read, write = os.pipe()
    yield read, write
    for descriptor in (read, write):
        try:
            os.close(descriptor)
        except OSError:
            assert descriptor  # The test has closed it.


@given(
    sent=st.dictionaries(st.text(max_size=10), TENSORS, max_size=4),
    document=st.dictionaries(st.text(), st.text()),
)
@settings(max_examples=200, deadline=None)
def test_what_is_received_is_what_was_sent(sent: dict[str, Any], document: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        pipe_of = triton_module("package_pipe", monkeypatch).Pipe
    document.pop("arrays", None)
    read, write = os.pipe()
    try:
        pipe = pipe_of(read, write)
        pipe.send(document, sent)
        said, received = pipe.receive()
    finally:
        os.close(read)
        os.close(write)
    assert said == document
    assert list(received) == list(sent)
    for name, array in sent.items():
        assert received[name].dtype == array.dtype
        assert received[name].shape == array.shape
        # By their bytes: not-a-number is itself here.
        assert received[name].tolist() == array.tolist() or received[name].tobytes() == array.tobytes()
        assert received[name].flags.writeable


def test_more_than_a_pipe_holds_comes_through_while_both_sides_look_after_other_things(
    package_pipe: ModuleType, ends: tuple[int, int]
) -> None:
    read, write = ends
    for descriptor in ends:
        os.set_blocking(descriptor, False)
    sent = {"image": np.arange(1 << 22, dtype=np.int32), "turned": np.arange(6.0).reshape(2, 3).T}
    looks = list[int]()
    sender = threading.Thread(
        target=package_pipe.Pipe(-1, write).send, args=({}, sent), kwargs={"wait": lambda: looks.append(1)}
    )
    sender.start()
    _, received = package_pipe.Pipe(read, -1).receive(wait=lambda: looks.append(1))
    sender.join()
    assert all((received[name] == array).all() for name, array in sent.items())


class GivenUp(Exception):  # noqa: N818
    pass


def give_up() -> None:
    raise GivenUp


def test_whoever_has_waited_long_enough_gives_up(package_pipe: ModuleType, ends: tuple[int, int]) -> None:
    for descriptor in ends:
        os.set_blocking(descriptor, False)
    pipe = package_pipe.Pipe(*ends)
    with pytest.raises(GivenUp):
        pipe.receive(wait=give_up)
    with pytest.raises(GivenUp):
        pipe.send({}, {"much": np.zeros(1 << 22)}, wait=give_up)


def test_the_end_of_the_other_side_is_seen(package_pipe: ModuleType, ends: tuple[int, int]) -> None:
    read, write = ends
    os.close(write)
    with pytest.raises(package_pipe.Closed):
        package_pipe.Pipe(read, -1).receive()
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(package_pipe.Closed):
        package_pipe.Pipe(-1, write).send({})
    os.close(write)
