"""The protocol's proto file, for clients in other languages, agrees with that of Triton's client."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor
from grpc_tools import protoc
from tritonclient.grpc import service_pb2

PROTO = Path(__file__).parents[2] / "protos" / "third_party" / "inference" / "open_inference.proto"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorProto:
    out = tmp_path_factory.mktemp("descriptors") / "set.pb"
    arguments = [f"--proto_path={PROTO.parent}", f"--descriptor_set_out={out}", PROTO.name]
    assert protoc.main(["protoc", *arguments]) == 0
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def fields(message: descriptor_pb2.DescriptorProto) -> dict[str, tuple[int, int, int]]:
    return {field.name: (field.number, field.type, field.label) for field in message.field}


def same(message: descriptor_pb2.DescriptorProto, theirs: Descriptor) -> None:
    expected = descriptor_pb2.DescriptorProto()
    theirs.CopyToProto(expected)
    known = fields(expected)
    for name, shape in fields(message).items():
        assert known[name] == shape, f"{message.name}.{name}"
    for nested in message.nested_type:
        same(nested, theirs.nested_types_by_name[nested.name])


def test_every_message_has_the_protocols_fields(ours: descriptor_pb2.FileDescriptorProto) -> None:
    for message in ours.message_type:
        same(message, service_pb2.DESCRIPTOR.message_types_by_name[message.name])


def test_every_method_is_the_protocols(ours: descriptor_pb2.FileDescriptorProto) -> None:
    from tritonclient.grpc import service_pb2_grpc

    for method in ours.service[0].method:
        assert hasattr(service_pb2_grpc.GRPCInferenceServiceServicer, method.name)
