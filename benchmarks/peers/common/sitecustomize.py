"""Keeps on loopback the servers that listen on every address and have no setting for it."""

import importlib.util

if importlib.util.find_spec("grpc"):
    from grpc import aio

    _listen = aio.Server.add_insecure_port

    def _listen_on_loopback(server: aio.Server, address: str) -> int:
        return _listen(server, address.replace("[::]", "127.0.0.1"))

    aio.Server.add_insecure_port = _listen_on_loopback
