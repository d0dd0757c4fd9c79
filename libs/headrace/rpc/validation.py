"""Requests against the rules in their protos (`buf.validate`).

Almost every request is valid, and finding that out must cost little: protovalidate interprets CEL in
Python, which takes milliseconds for a nested message, and half a second to import. So a message type's
rules are first compiled into plain Python checks. Only where one of them fails, or is of a kind that is
not known here, protovalidate is asked, and its answer is the one that counts.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message

from buf.validate import validate_pb2
from headrace.errors import FieldViolation, InvalidArgument

if TYPE_CHECKING:
    from protovalidate import Validator

# The stubs know two classes for the one that messages have.
AnyDescriptor = Any
M = TypeVar("M")
Check = Callable[[Any], bool]
"""Whether a value surely satisfies its rules."""


def read_message(parse: Callable[[bytes], M], data: bytes, kind: str) -> M:
    """The message that these bytes are. Raises InvalidArgument/UNREADABLE_REQUEST where they are none."""
    try:
        return parse(data)
    except DecodeError:
        raise InvalidArgument("UNREADABLE_REQUEST", f"the request is not a {kind}") from None


class RequestValidator:
    """Checks messages against their rules; a message type is compiled at its first use."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._oracle: Validator | None = None

    def check(self, message: Message) -> None:
        """Raise InvalidArgument/INVALID_REQUEST, with the path of each field at fault."""
        if self._surely_valid(message):
            return
        violations = self._violations(message)
        if violations:
            first, more = violations[0], len(violations) - 1
            sentence = f"{first.field}: {first.description}" if first.field else first.description
            raise InvalidArgument(
                "INVALID_REQUEST", sentence + (f" (and {more} more)" if more else ""), fields=violations
            )

    def _surely_valid(self, message: Message) -> bool:
        name = message.DESCRIPTOR.full_name
        check = self._checks.get(name)
        if check is None:
            check = self._checks[name] = self._compile(message.DESCRIPTOR)
        return check(message)

    def _compile(self, descriptor: AnyDescriptor) -> Check:
        if descriptor.GetOptions().HasExtension(validate_pb2.message):
            return _unsure
        checks: list[Check] = []
        for oneof in descriptor.oneofs:
            if oneof.GetOptions().HasExtension(validate_pb2.oneof):
                return _unsure
        for field in descriptor.fields:
            checks.extend(self._field_checks(field))
        return _all_of(checks)

    def _field_checks(self, field: FieldDescriptor) -> Iterable[Check]:
        options = field.GetOptions()
        if options.HasExtension(validate_pb2.field):
            yield _rule_check(field, options.Extensions[validate_pb2.field])
        if field.message_type is None:
            return
        if field.message_type.GetOptions().map_entry:
            values = field.message_type.fields_by_name["value"]
            if values.message_type is not None:
                yield _for_values(field.name, self._surely_valid)
        elif field.is_repeated:
            yield _for_items(field.name, self._surely_valid)
        else:
            yield _if_present(field.name, self._surely_valid)

    def _violations(self, message: Message) -> list[FieldViolation]:
        if self._oracle is None:
            import protovalidate

            self._oracle = protovalidate.Validator()  # type: ignore[no-untyped-call]
        return [
            FieldViolation(_path(violation.proto.field.elements), violation.proto.message)
            for violation in self._oracle.collect_violations(message)
        ]


def _path(elements: Iterable[validate_pb2.FieldPathElement]) -> str:
    path = ""
    for element in elements:
        path += ("." if path else "") + element.field_name
        subscript = element.WhichOneof("subscript")
        if subscript is not None:
            path += f"[{getattr(element, subscript)}]"
    return path


def _unsure(_: object) -> bool:
    return False


def _all_of(checks: Sequence[Check]) -> Check:
    def check(value: object) -> bool:
        return all(one(value) for one in checks)

    return check


def _if_present(name: str, check: Check) -> Check:
    return lambda message: not message.HasField(name) or check(getattr(message, name))


def _for_items(name: str, check: Check) -> Check:
    return lambda message: all(map(check, getattr(message, name)))


def _for_values(name: str, check: Check) -> Check:
    return lambda message: all(map(check, getattr(message, name).values()))


def _rule_check(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Check:
    """Return the check of one field's rules on the message that has the field."""
    value_check = _value_check(field, rules)
    if value_check is None:
        return _unsure
    name, required = field.name, rules.required
    if field.has_presence:
        return lambda message: value_check(getattr(message, name)) if message.HasField(name) else not required
    if required:
        return lambda message: bool(getattr(message, name)) and value_check(getattr(message, name))
    return lambda message: value_check(getattr(message, name))


def _value_check(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Check | None:
    """Return the check of a value against its type's rules; None where a rule is not known here."""
    kind = rules.WhichOneof("type")
    if any(rule.name not in (kind, "required") for rule, _ in rules.ListFields()):
        return None
    if kind is None:
        return _all_of(())
    checks: list[Check] = []
    for rule, bound in getattr(rules, kind).ListFields():
        check = None if rule.is_extension else _one_check(field, rule.name, bound)
        if check is None:
            return None
        checks.append(check)
    return _all_of(checks)


def _one_check(field: FieldDescriptor, rule: str, bound: Any) -> Check | None:
    """Return the check of a value against one of its type's rules; None where it is not known here."""
    if rule in ("items", "keys"):
        # Iterating over a map gives its keys.
        entry = field.message_type if rule == "keys" else None
        check = _value_check(entry.fields_by_name["key"] if entry else field, bound)
        return None if check is None or bound.required else _each(check)
    if rule == "defined_only" and field.enum_type is not None:
        return frozenset(field.enum_type.values_by_number).__contains__
    if rule not in _RULES:
        return None
    if isinstance(bound, Duration):
        return _by_length(_RULES[rule](bound.ToNanoseconds()))
    if isinstance(bound, Message):
        return None
    return _RULES[rule](bound)


def _each(check: Check) -> Check:
    return lambda values: all(map(check, values))


def _by_length(check: Check) -> Check:
    return lambda duration: check(duration.ToNanoseconds())


def _are_unique(wanted: bool) -> Check:
    return lambda values: not wanted or len(set(values)) == len(values)


def _at_least_long(bound: int) -> Check:
    return lambda value: len(value) >= bound


def _at_most_long(bound: int) -> Check:
    return lambda value: len(value) <= bound


def _matches(pattern: str) -> Check:
    search = re.compile(pattern).search
    # Python's `$` also matches before a last newline; RE2's does not.
    return lambda value: search(value) is not None and "\n" not in value


def _is_uuid(_: bool) -> Check:
    def check(value: str) -> bool:
        try:
            return str(uuid.UUID(value)) == value.lower()
        except ValueError:
            return False

    return check


_RULES: dict[str, Callable[[Any], Check]] = {
    "min_len": _at_least_long,
    "max_len": _at_most_long,
    "min_items": _at_least_long,
    "max_items": _at_most_long,
    "unique": _are_unique,
    "pattern": _matches,
    "uuid": _is_uuid,
    "in": lambda allowed: frozenset(allowed).__contains__,
    "not_in": lambda forbidden: lambda value: value not in forbidden,
    "const": lambda wanted: lambda value: bool(value == wanted),
    "gt": lambda bound: lambda value: bool(value > bound),
    "gte": lambda bound: lambda value: bool(value >= bound),
    "lt": lambda bound: lambda value: bool(value < bound),
    "lte": lambda bound: lambda value: bool(value <= bound),
}
