"""Signatures as owners of models write them down."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.client.signature_file import read_signature
from headrace.errors import InvalidArgument

SIGNATURE = """\
inputs:
  - {name: features, datatype: FP32, shape: [-1, 4]}
outputs:
  - {name: scores, datatype: FP32, shape: [-1, 3]}
classes: [setosa, 2, true]
"""


def file(folder: Path, text: str) -> Path:
    path = folder / "signature.yaml"
    path.write_text(text)
    return path


def test_a_signature_is_read(tmp_path: Path) -> None:
    assert read_signature(file(tmp_path, SIGNATURE)) == registry.Signature(
        inputs=[registry.TensorSpec(name="features", datatype="FP32", shape=[-1, 4])],
        outputs=[registry.TensorSpec(name="scores", datatype="FP32", shape=[-1, 3])],
        classes=['"setosa"', "2", "true"],
    )


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("[-1, 4]", "[4]", "begins with -1, the batch"),
        ("[-1, 4]", "[-1, 0]", "sizes from 1, or -1 for any"),
        ("FP32", "FLOAT", "must be one of BOOL"),
        ("[setosa, 2, true]", "[setosa, setosa]", "a class stands here twice"),
        ("[setosa, 2, true]", "[setosa, [2]]", "must be a text or a number"),
        ("classes:", "klasses:", "did you mean 'classes'"),
        ("inputs:\n  - {name: features, datatype: FP32, shape: [-1, 4]}", "inputs: []", "one tensor or more"),
        (
            "outputs:\n",
            "outputs:\n  - {name: scores, datatype: FP32, shape: [-1]}\n",
            "each with a name of its own",
        ),
    ],
)
def test_what_is_wrong_with_one_is_said(tmp_path: Path, before: str, after: str, why: str) -> None:
    assert before in SIGNATURE
    with pytest.raises(InvalidArgument, match=why) as raised:
        read_signature(file(tmp_path, SIGNATURE.replace(before, after)))
    assert raised.value.reason == "INVALID_SIGNATURE"


def test_a_file_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read") as raised:
        read_signature(tmp_path / "missing.yaml")
    assert raised.value.reason == "INVALID_SIGNATURE"
