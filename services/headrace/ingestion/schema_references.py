"""The schemas that a schema refers to, those that they refer to, and so on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from pydantic import BaseModel, Field

from headrace.ingestion.domain.avro import UnusableSchema

# Each level is waited for, and each schema a request.
_MOST_DEPTH: Final = 16
_MOST_SCHEMAS: Final = 100
_MOST_CHARACTERS: Final = 1 << 20
_RULE: Final = "references"


class Reference(BaseModel):
    """What a schema calls another one, and which version of which subject that is."""

    name: str
    subject: str
    version: int


class Schema(BaseModel):
    """A schema as a registry answers it. Avro, the first format that there was, goes without saying."""

    definition: str = Field(alias="schema")
    format: str = Field(default="AVRO", alias="schemaType")
    references: tuple[Reference, ...] = ()


class MissingReference(UnusableSchema):
    """The registry has not got what a schema refers to; it may have later on."""


Ask = Callable[[Reference], Awaitable[Schema | None]]
"""Answers what a reference is to; None where the registry has none."""


async def definitions_of(references: Sequence[Reference], ask: Ask) -> Mapping[str, str]:
    """The definitions of all that is referred to, by the names that it is referred to by.

    Raises UnusableSchema where there is too much of it or one name means two things, and MissingReference.
    """
    known: dict[tuple[str, int], Schema] = {}
    found: dict[str, str] = {}
    for _ in range(_MOST_DEPTH):
        new = {
            (reference.subject, reference.version): reference
            for reference in references
            if (reference.subject, reference.version) not in known
        }
        if len(known) + len(new) > _MOST_SCHEMAS:
            raise UnusableSchema(_RULE, f"refers to more than {_MOST_SCHEMAS} others")
        answers = await asyncio.gather(*map(ask, new.values()))
        for (place, reference), answer in zip(new.items(), answers, strict=True):
            if answer is None:
                raise MissingReference(
                    _RULE,
                    f"refers to {reference.name}, version {reference.version} of the subject "
                    f"{reference.subject}, which the schema registry has not got",
                )
            known[place] = answer
        for reference in references:
            definition = known[reference.subject, reference.version].definition
            if found.setdefault(reference.name, definition) != definition:
                raise UnusableSchema(_RULE, f"refers to two schemas by one name, {reference.name}")
        if sum(map(len, found.values())) > _MOST_CHARACTERS:
            raise UnusableSchema(_RULE, f"refers to more than {_MOST_CHARACTERS} characters of others")
        references = [other for place in new for other in known[place].references]
        if not references:
            return found
    raise UnusableSchema(_RULE, f"refers to others more than {_MOST_DEPTH} deep")
