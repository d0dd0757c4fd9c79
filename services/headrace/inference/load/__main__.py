"""The process that makes the load: one line of JSON in for each window, one out.

It ends with its input, and so with whoever asked for it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys

from headrace.rpc.load import Outcome, load, paced_load

METHOD = "/inference.GRPCInferenceService/ModelInfer"


async def window(address: str, message: bytes, in_flight: int, rate: float, seconds: float) -> Outcome:
    """Keep load up for so long: at the rate, or where that is 0 with so many requests under way."""
    if rate:
        return await paced_load(address, METHOD, message, rate=rate, seconds=seconds)
    return await load(address, METHOD, message, in_flight=in_flight, seconds=seconds)


def main() -> None:
    """Read what to call, then windows until there are no more."""
    target = json.loads(sys.stdin.readline())
    message = base64.b64decode(target["message"])
    for line in sys.stdin:
        wish = json.loads(line)
        try:
            outcome = asyncio.run(window(target["address"], message, **wish))
            answer = {"seconds": outcome.seconds, "failed": outcome.failed, "elapsed": outcome.elapsed}
        except OSError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
