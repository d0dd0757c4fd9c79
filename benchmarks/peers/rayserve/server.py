"""Ray Serve with one ONNX model: server.py MODEL GRPC_PORT HTTP_PORT FOLDER."""

import signal
import sys

import ray
from deployment import Served
from ray import serve
from ray.serve.config import HTTPOptions, gRPCOptions
from ray.serve.schema import LoggingConfig

if __name__ == "__main__":
    path, grpc_port, http_port, folder = sys.argv[1:]
    ray.init(
        address="local",
        include_dashboard=False,
        _temp_dir=folder,
        object_store_memory=100 << 20,
    )
    serve.start(
        http_options=HTTPOptions(host="127.0.0.1", port=int(http_port)),
        grpc_options=gRPCOptions(
            port=int(grpc_port),
            grpc_servicer_functions=[
                "tritonclient.grpc.service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"
            ],
        ),
        logging_config=LoggingConfig(enable_access_log=False),
    )
    serve.run(Served.bind(path))
    # Ray's own handler of SIGTERM ends this process, and with it all of Ray's.
    signal.pause()
