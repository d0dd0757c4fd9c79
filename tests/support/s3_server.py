"""moto's S3, one request at a time: only so is its put "if there is none yet" atomic.

python -m tests.support.s3_server PORT
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

application = DomainDispatcherApplication(create_backend_app)
one_at_a_time = threading.Lock()


def serve(environment: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Threads wait here, and not for connections: clients open some in advance."""
    with one_at_a_time:
        answer: Iterable[bytes] = application(environment, start_response)
        return answer


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), serve, threaded=True)
