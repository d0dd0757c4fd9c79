"""What a model takes and gives, as its owner writes it down.

inputs:
  - {name: features, datatype: FP32, shape: [-1, 4]}     # the first size is the batch
outputs:
  - {name: scores, datatype: FP32, shape: [-1, 3]}
classes: [setosa, versicolor, virginica]                 # in the order of the scores; none for other models
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from headrace.api.registry.v1 import registry_pb2 as registry
from headrace.client.yaml_reader import Document, Place
from headrace.errors import InvalidArgument

REASON: Final = "INVALID_SIGNATURE"

_DATATYPES: Final = {
    name: name
    for name in (
        "BOOL",
        *(f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)),
        *("FP16", "FP32", "FP64", "BYTES"),
    )
}
_KEYS: Final = ("name", "datatype", "shape")


def read_signature(path: Path) -> registry.Signature:
    """Read a signature's file. Raises InvalidArgument/INVALID_SIGNATURE with every mistake in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(REASON, f"{path} cannot be read: {error}") from error
    document = Document(text, str(path), reason=REASON)
    entries = document.mapping(document.root, ("inputs", "outputs", "classes"), ("inputs", "outputs"))
    signature = registry.Signature(
        inputs=_tensors(document, entries.get("inputs")),
        outputs=_tensors(document, entries.get("outputs")),
        classes=[_class(document, item) for item in document.items(entries.get("classes"))],
    )
    if len(set(signature.classes)) != len(signature.classes):
        document.fail(entries["classes"], "a class stands here twice")
    document.check()
    return signature


def _class(document: Document, place: Place) -> str:
    value = document.plain(place)
    if not isinstance(value, str | int | float):
        document.fail(place, "must be a text or a number")
    return json.dumps(value)


def _tensors(document: Document, place: Place | None) -> list[registry.TensorSpec]:
    items = document.items(place)
    tensors = [_tensor(document, item) for item in items]
    if place is not None and len({tensor.name for tensor in tensors}) != max(1, len(tensors)):
        document.fail(place, "needs one tensor or more, each with a name of its own")
    return tensors


def _tensor(document: Document, place: Place) -> registry.TensorSpec:
    entries = document.mapping(place, _KEYS, _KEYS)
    shape = [document.integer(size) for size in document.items(entries.get("shape"))]
    if "shape" in entries and (shape[:1] != [-1] or any(size < 1 and size != -1 for size in shape)):
        document.fail(
            entries["shape"], "begins with -1, the batch, and goes on with sizes from 1, or -1 for any"
        )
    return registry.TensorSpec(
        name=document.text(entries.get("name")),
        datatype=document.choice(entries.get("datatype"), _DATATYPES, ""),
        shape=shape,
    )
