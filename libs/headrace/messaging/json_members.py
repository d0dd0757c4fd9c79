"""One JSON object taken apart, with each value as the text that it is.

A parser that makes values and a serialiser that writes them again would change what a sender wrote: a
number's notation, a name that stands there twice.
"""

from __future__ import annotations

import json
import re
from typing import Final

_SPACE: Final = re.compile(r"[ \t\n\r]*")
# Numbers are not made: Python limits their digits.
_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=str)


def json_members(text: str) -> dict[str, str]:
    """The names of an object and the JSON text of each value. Raises ValueError where it is none."""
    members: dict[str, str] = {}
    position = _behind(text, 0, "{")
    if _next(text, position) == "}":
        _expect_end(text, _behind(text, position, "}"))
        return members
    while True:
        if _next(text, position) != '"':
            raise ValueError(f"a name is missing at character {position}")
        name, position = _value(text, position)
        assert isinstance(name, str)
        start = _skip(text, _behind(text, position, ":"))
        _, position = _value(text, start)
        if name in members:
            raise ValueError(f"the name {name!r} stands there twice")
        members[name] = text[start:position]
        if _next(text, position) == "}":
            _expect_end(text, _behind(text, position, "}"))
            return members
        position = _behind(text, position, ",")


def _value(text: str, position: int) -> tuple[object, int]:
    try:
        return _DECODER.raw_decode(text, _skip(text, position))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _skip(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    assert found is not None
    return found.end()


def _next(text: str, position: int) -> str:
    """The next character that is no white space; "" at the end."""
    position = _skip(text, position)
    return text[position : position + 1]


def _behind(text: str, position: int, character: str) -> int:
    if _next(text, position) != character:
        raise ValueError(f"{character!r} is missing at character {position}")
    return _skip(text, position) + 1


def _expect_end(text: str, position: int) -> None:
    if _next(text, position):
        raise ValueError(f"there is more at character {position}")
