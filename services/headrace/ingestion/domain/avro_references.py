"""An Avro schema and those that it refers to, put together as one that refers to none.

A name that another schema declares gives way to its declaration where it comes first, and stays a name where
it comes again, as if its writer had written it so. What reads records need not know that there were others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import orjson

_DECLARED: Final = ("record", "error", "enum", "fixed")
_OWN: Final = frozenset(
    {*_DECLARED, "array", "map", "null", "boolean", "int", "long", "float", "double", "bytes", "string"}
)
"""Words that name no declared type, whatever others declare."""
_PARTS: Final = ("type", "fields", "items", "values")


def whole(definition: dict[str, Any], references: Sequence[str]) -> dict[str, Any]:
    """The schema, with declarations of `references`, in JSON, in the places of their names.

    Raises the errors of a JSON that is no Avro schema: ValueError, LookupError, TypeError, AttributeError.
    """
    others = {
        name: declaration
        for reference in references
        for name, declaration in _declarations(orjson.loads(reference), "")
    }
    put_together: dict[str, Any] = _Whole(others).of(definition, "")
    return put_together


def _declarations(node: Any, namespace: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The types that a schema declares: full name, and declaration with its namespace said."""
    if isinstance(node, list):
        for branch in node:
            yield from _declarations(branch, namespace)
    elif isinstance(node, dict):
        if node["type"] in _DECLARED:
            namespace, name = _full_name(node, namespace)
            yield name, {**node, "namespace": namespace}
        for part in _parts(node):
            yield from _declarations(part, namespace)


class _Whole:
    """Walks a schema in the order in which it is read."""

    def __init__(self, others: dict[str, dict[str, Any]]) -> None:
        self._others = others
        self._declared: set[str] = set()

    def of(self, node: Any, namespace: str, *, other: bool = False) -> Any:
        """A type with nothing but its own names left; `other`: of a schema that is referred to."""
        if isinstance(node, str):
            return self._of_name(node, namespace)
        if isinstance(node, list):
            return [self.of(branch, namespace, other=other) for branch in node]
        if node["type"] in _DECLARED:
            namespace, name = _full_name(node, namespace)
            # It may have been put in by its own name, before the type around it was.
            if other and name in self._declared:
                return name
            self._declared.add(name)
        return {
            key: self._of_part(key, part, namespace, other=other) if key in _PARTS else part
            for key, part in node.items()
        }

    def _of_name(self, name: str, namespace: str) -> Any:
        full = name if "." in name or not namespace else f"{namespace}.{name}"
        if name in _OWN or full not in self._others:
            return name
        if full in self._declared:
            return full
        return self.of(self._others[full], "", other=True)

    def _of_part(self, key: str, part: Any, namespace: str, *, other: bool) -> Any:
        if key == "fields":
            return [{**field, "type": self.of(field["type"], namespace, other=other)} for field in part]
        return self.of(part, namespace, other=other)


def _parts(node: dict[str, Any]) -> Iterator[Any]:
    """The types that a type is made of."""
    for key in _PARTS:
        if key == "fields":
            yield from (field["type"] for field in node.get(key, ()))
        elif key in node:
            yield node[key]


def _full_name(node: dict[str, Any], namespace: str) -> tuple[str, str]:
    """A declaration's namespace and full name; `namespace` is that around it."""
    name: str = node["name"]
    if "." in name:
        return name.rpartition(".")[0], name
    inside: str = node.get("namespace", namespace)
    return inside, f"{inside}.{name}" if inside else name
