"""Schemas and payloads of Protobuf by a schema registry, for tests."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from headrace.ingestion.proto_compiler import compile_proto
from headrace.ingestion.use_cases.ports import RegisteredSchema

FIRST_MESSAGE = b"\0"
"""The indexes of a schema's first message, as serialisers shorten them."""


def registered(definition: str, imported: Mapping[str, str] | None = None) -> RegisteredSchema:
    """A schema as the service has it from its registry."""
    return RegisteredSchema("PROTOBUF", definition, descriptors=compile_proto(definition, imported))


def message(schema: RegisteredSchema, name: str, text: str) -> bytes:
    """A message of that full name, given in Protobuf's text format, as bytes."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(schema.descriptors).file:
        pool.AddSerializedFile(file.SerializeToString())
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    return text_format.Parse(text, kind()).SerializeToString()
