"""`python -m headrace.training.run FOLDER`: do what FOLDER/spec.json says.

Environment: HEADRACE_RUN_PIPE is the descriptor to tell progress on; TRACEPARENT the trace to continue;
HEADRACE_OTLP_ENDPOINT where spans go. Exit code 0 when the results are in the folder, 3 when the run was
told to stop (SIGTERM) and saved a checkpoint, 1 for an error.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path

from headrace import telemetry
from headrace.telemetry import names, tracing
from headrace.training.run.errors import Interrupted, OutOfMemory, RunError
from headrace.training.run.messages import Failed, Finished, Pipe
from headrace.training.run.specification import RunSpec

PIPE_VARIABLE = "HEADRACE_RUN_PIPE"
TRACE_VARIABLE = "TRACEPARENT"
EXIT_FAILED = 1
EXIT_INTERRUPTED = 3


class StopFlag:
    """Set by SIGTERM; the loop looks at it after each epoch."""

    def __init__(self) -> None:
        self.raised = False
        signal.signal(signal.SIGTERM, self._raise)

    def _raise(self, *_: object) -> None:
        self.raised = True


def main() -> int:
    """Run; the exit code."""
    folder = Path(sys.argv[1])
    spec = RunSpec.read(folder)
    descriptor = os.environ.get(PIPE_VARIABLE, "")
    pipe = Pipe(int(descriptor) if descriptor else None)
    stop = StopFlag()
    sdk = telemetry.setup("training", spec.run, os.environ.get("HEADRACE_OTLP_ENDPOINT", ""))
    try:
        with tracing.span(
            names.SPAN_RUN,
            parent=os.environ.get(TRACE_VARIABLE, ""),
            attributes={names.RUN: spec.run, names.JOB: spec.job, names.PIPELINE: spec.pipeline},
        ):
            # PyTorch is imported in the span: it is a good part of a short run.
            from headrace.training.run.work import work

            work(spec, folder, pipe, lambda: stop.raised)
    except Interrupted:
        return EXIT_INTERRUPTED
    except RunError as error:
        print(f"{error.reason}: {error}", file=sys.stderr, flush=True)
        pipe.send(Failed(reason=error.reason, message=str(error)))
        return EXIT_FAILED
    except MemoryError:
        pipe.send(Failed(reason=OutOfMemory.reason, message="an allocation failed; give the run more memory"))
        return EXIT_FAILED
    except Exception as error:
        traceback.print_exc()
        pipe.send(Failed(reason=RunError.reason, message=f"{type(error).__name__}: {error}"))
        return EXIT_FAILED
    finally:
        sdk.shutdown()
    pipe.send(Finished())
    return 0


if __name__ == "__main__":
    sys.exit(main())
