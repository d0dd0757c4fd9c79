"""The protocol's messages under the name by which their classes know their module: Ray finds them by it."""

from tritonclient.grpc.service_pb2 import *  # noqa: F403
