"""Reading YAML that people write: every mistake is found in one go, with its line and column.

A reader walks YAML's nodes, which know their place in the file, instead of the plain values that
`yaml.load` makes of them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from headrace.errors import FieldViolation, InvalidArgument

T = TypeVar("T")
Plain = str | int | float | bool | None | list["Plain"] | dict[str, "Plain"]

MAX_NODES: Final = 100_000
MAX_DEPTH: Final = 50
# google.protobuf.Duration's own limit, ten thousand years.
MAX_DURATION_SECONDS: Final = 315_576_000_000
MAX_MEMORY_BYTES: Final = 1 << 63

_STR, _INT, _FLOAT, _BOOL, _NULL = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")
)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BARE_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?")
_MEMORY: Final = re.compile(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti|k|M|G|T|)")
_MEMORY_UNITS: Final = {
    "": 1,
    **{prefix: 10 ** (3 * power) for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}i": 2 ** (10 * power) for power, prefix in enumerate("KMGT", 1)},
}


def seconds_of(text: str) -> float | None:
    """A length of time such as 20ms, 90s or 1h30m, or seconds as a bare number; None of any other text."""
    return _amount(text, _DURATION, _DURATION_UNITS)


def _amount(text: str, pattern: re.Pattern[str], units: Mapping[str, float]) -> float | None:
    if _BARE_NUMBER.fullmatch(text):
        return float(text)
    parts = pattern.findall(text)
    if not text or not parts or "".join(amount + unit for amount, unit in parts) != text:
        return None
    return sum(float(amount) * units[unit] for amount, unit in parts)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types: `on` and `no` are words, and 1e-3 is a number."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's


for _tag, _pattern, _first in (
    (_NULL, r"~|null|Null|NULL|", ("~", "n", "N", "")),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    (_INT, r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    (
        _FLOAT,
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        tuple("-+.0123456789"),
    ),
):
    for _letter in _first:
        _Loader.yaml_implicit_resolvers.setdefault(_letter, []).append((_tag, re.compile(f"(?:{_pattern})$")))


@dataclass(frozen=True, slots=True)
class Place:
    """A node, and its path from the top: "spec.dataset.features.mean_radius"."""

    node: Node
    path: str

    @property
    def line(self) -> int:
        """Counted from 1."""
        return int(self.node.start_mark.line) + 1

    @property
    def column(self) -> int:
        """Counted from 1."""
        return int(self.node.start_mark.column) + 1


class Document:
    """One YAML document. Readers answer a stand-in where the file is wrong; `check` raises at the end."""

    def __init__(self, text: str, name: str, *, reason: str = "INVALID_PIPELINE_FILE") -> None:
        """`name` stands for the file in errors, and `reason` is their code."""
        self._name = name
        self._reason = reason
        self._problems: list[tuple[Place | None, str, str]] = []
        self._nodes = 0
        self.places: dict[str, Place] = {}
        """Everything that was read, by path."""
        self.root = Place(self._compose(text), "")
        self._refuse_lone_surrogates()

    def check(self) -> None:
        """Raise InvalidArgument with every mistake found, the first one as message."""
        if not self._problems:
            return
        fields = [
            FieldViolation(path or "(file)", f"{where}: {text}") for where, path, text in self._located()
        ]
        where, path, text = self._located()[0]
        more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
        subject = f"{path}: " if path else ""
        raise InvalidArgument(self._reason, f"{self._name}:{where}: {subject}{text}{more}", fields=fields)

    def fail(self, place: Place, text: str) -> None:
        """Note a mistake at a place."""
        self._problems.append((place, place.path, text))

    def mapping(
        self, place: Place | None, allowed: Collection[str], required: Collection[str] = ()
    ) -> dict[str, Place]:
        """Read a mapping with known keys; unknown, repeated and missing ones are mistakes."""
        if place is None:
            return {}
        found = self.entries(place)
        for key in list(found):
            if key not in allowed:
                entry = found.pop(key)
                close = difflib.get_close_matches(key, allowed, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                self._problems.append(
                    (
                        Place(self._key_node(place, key), entry.path),
                        entry.path,
                        f"unknown key {key!r}{hint} (allowed: {', '.join(sorted(allowed))})",
                    )
                )
        for key in required:
            if key not in found:
                self.fail(place, f"the key {key!r} is missing")
        return found

    def entries(self, place: Place) -> dict[str, Place]:
        """Read a mapping with any keys."""
        node = place.node
        if not isinstance(node, MappingNode):
            self.fail(place, f"must be a mapping of keys to values, not {_kind(node)}")
            return {}
        found: dict[str, Place] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, ScalarNode) else "?"
            entry = Place(value_node, f"{place.path}.{key}" if place.path else key)
            if not isinstance(key_node, ScalarNode):
                self.fail(Place(key_node, place.path), "a key must be a word")
            elif key in found:
                self.fail(Place(key_node, entry.path), f"the key {key!r} stands here twice")
            else:
                found[key] = entry
                # A person looks for the key, not for what stands behind it.
                self.places.setdefault(entry.path, Place(key_node, entry.path))
        return found

    def items(self, place: Place | None) -> list[Place]:
        """Read a list; an absent one is empty."""
        if place is None:
            return []
        if not isinstance(place.node, SequenceNode):
            self.fail(place, f"must be a list, not {_kind(place.node)}")
            return []
        found = [Place(node, f"{place.path}[{index}]") for index, node in enumerate(place.node.value)]
        self.places |= {item.path: item for item in found}
        return found

    def text(self, place: Place | None, default: str = "") -> str:
        """Read a word or a sentence. A bare number counts as its digits."""
        if place is None:
            return default
        node = place.node
        if isinstance(node, ScalarNode) and node.tag in (_STR, _INT, _FLOAT) and node.value:
            return str(node.value)
        self.fail(place, f"must be text, not {_kind(node)}")
        return default

    def integer(self, place: Place | None, default: int = 0, *, bits: int = 64) -> int:
        """Read a whole number that a signed field of so many bits holds."""
        if place is None:
            return default
        value = self.plain(place)
        if isinstance(value, int) and not isinstance(value, bool):
            low, high = -(1 << bits - 1), (1 << bits - 1) - 1
            if low <= value <= high:
                return value
            self.fail(place, f"must be between {low} and {high}")
            return default
        self.fail(place, f"must be a whole number, not {_kind(place.node)}")
        return default

    def number(self, place: Place | None, default: float = 0.0) -> float:
        """Read a number."""
        if place is None:
            return default
        value = self.plain(place)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                self.fail(place, "is too large a number")
                return default
        self.fail(place, f"must be a number, not {_kind(place.node)}")
        return default

    def boolean(self, place: Place | None, *, default: bool = False) -> bool:
        """Read true or false."""
        if place is None:
            return default
        value = self.plain(place)
        if isinstance(value, bool):
            return value
        self.fail(place, f"must be true or false, not {_kind(place.node)}")
        return default

    def choice(self, place: Place | None, choices: Mapping[str, T], default: T) -> T:
        """Read one of some words."""
        if place is None:
            return default
        word = place.node.value if isinstance(place.node, ScalarNode) else None
        if word in choices:
            return choices[str(word)]
        close = difflib.get_close_matches(str(word), choices, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        self.fail(place, f"must be one of {', '.join(choices)}, not {_kind(place.node)}{hint}")
        return default

    def duration(self, place: Place | None) -> timedelta:
        """Read a length of time: 90s, 10m, 1h30m, 500ms, or seconds as a bare number."""
        seconds = self._quantity(
            place, _DURATION, _DURATION_UNITS, "a length of time such as 90s, 10m or 1h30m"
        )
        if seconds > MAX_DURATION_SECONDS:
            assert place is not None
            self.fail(place, f"must be at most {MAX_DURATION_SECONDS} s")
            return timedelta()
        return timedelta(seconds=seconds)

    def memory(self, place: Place | None) -> int:
        """Read an amount of memory: 512Mi, 2Gi, 1G, or bytes as a bare number."""
        wanted = "an amount of memory such as 512Mi or 2Gi"
        amount = self._quantity(place, _MEMORY, _MEMORY_UNITS, wanted)
        if amount >= MAX_MEMORY_BYTES:
            assert place is not None
            self.fail(place, f"must be less than {MAX_MEMORY_BYTES} bytes")
            return 0
        return int(amount)

    def plain(self, place: Place) -> Plain:
        """Read anything as the plain value that it is."""
        return self._plain(place, 0)

    def _quantity(
        self, place: Place | None, pattern: re.Pattern[str], units: Mapping[str, float], wanted: str
    ) -> float:
        if place is None:
            return 0.0
        node = place.node
        amount = _amount(str(node.value) if isinstance(node, ScalarNode) else "", pattern, units)
        if amount is None:
            self.fail(place, f"must be {wanted}, not {_kind(node)}")
            return 0.0
        return amount

    def _plain(self, place: Place, depth: int) -> Plain:
        # An alias may refer to what contains it, or multiply what it refers to.
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            self.fail(place, "is nested too deeply or too large")
            self.check()
        node = place.node
        if isinstance(node, SequenceNode):
            return [self._plain(item, depth + 1) for item in self.items(place)]
        if isinstance(node, MappingNode):
            return {key: self._plain(entry, depth + 1) for key, entry in self.entries(place).items()}
        try:
            return _scalar(node)
        except ValueError:
            # Python reads no whole number of more than some thousand digits.
            self.fail(place, "is too large a number")
            return 0

    def _refuse_lone_surrogates(self) -> None:
        """An escape such as "\\ud800" is half a character: no field can hold it."""
        found, stack = set[int](), [self.root.node]
        while stack:
            node = stack.pop()
            if id(node) in found:
                # An alias may refer to what contains it.
                continue
            found.add(id(node))
            if isinstance(node, MappingNode):
                stack += [part for pair in node.value for part in pair]
            elif isinstance(node, SequenceNode):
                stack += node.value
            elif any("\ud800" <= character <= "\udfff" for character in node.value):
                self.fail(Place(node, ""), "holds half a character (a lone surrogate)")
        self.check()

    def _compose(self, text: str) -> Node:
        try:
            documents: Sequence[Node | None] = list(yaml.compose_all(text, _Loader))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            where = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
            message = ", ".join(part for part in (error.context, error.problem) if part)
            raise InvalidArgument(self._reason, f"{self._name}:{where}: not YAML: {message}") from error
        except yaml.YAMLError as error:
            raise InvalidArgument(self._reason, f"{self._name}: not YAML: {error}") from error
        if len(documents) != 1 or documents[0] is None:
            raise InvalidArgument(
                self._reason, f"{self._name}: holds {len(documents)} documents; one is wanted"
            )
        return documents[0]

    def _key_node(self, place: Place, key: str) -> Node:
        for key_node, _ in place.node.value:
            if isinstance(key_node, ScalarNode) and key_node.value == key:
                return key_node
        return place.node

    def _located(self) -> list[tuple[str, str, str]]:
        # What holds for several parts of a file is read for each, and its mistakes are told once.
        return list(
            dict.fromkeys(
                (f"{place.line}:{place.column}" if place else "1:1", path, text)
                for place, path, text in self._problems
            )
        )


def _scalar(node: Node) -> Plain:
    text = str(node.value)
    if node.tag == _NULL:
        return None
    if node.tag == _BOOL:
        return text.lower() == "true"
    if node.tag == _INT:
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if node.tag == _FLOAT:
        # Python knows infinity and not-a-number without YAML's dot.
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _kind(node: Node) -> str:
    """What stands there, for people."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    return "nothing" if node.tag == _NULL else repr(str(node.value))
