"""Which requests are logged, where a deployment logs a share of them.

Decided by a hash of a request's id, so that a request that comes again, and both answers of one that two
versions were asked, are logged or not alike, in every process. What has no id of its own is decided by the
one that it shares with its copy, or else by chance.
"""

import hashlib
import json
import random
import re

MIRROR_ID = "x-headrace-mirror-id"
# Of a hash of eight bytes.
_ALL = 1 << 64
# The caller's trace is recorded: the last bit of its flags.
_SAMPLED_TRACE = re.compile(r'"traceparent"\s*:\s*"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]"')


class Sampling:
    """The rule of one deployment: a share of its requests, from 0 to 1."""

    def __init__(self, share):
        self._share = share
        self._below = int(share * _ALL)

    def takes(self, request_id, parameters):
        """Whether a request is logged; `parameters` are its JSON, as Triton has it."""
        if self._share <= 0 or self._share >= 1:
            return self._share >= 1
        own_id = request_id or _mirror_id(parameters)
        return _place(own_id) < self._below if own_id else random.random() < self._share  # noqa: S311 - no secret


def is_traced(parameters):
    """Whether a request's span is wanted, be it logged or not."""
    return _SAMPLED_TRACE.search(parameters) is not None


def _place(own_id):
    """Where a request stands among all; the same for one id, and evenly spread over ids of any kind."""
    # A hash of this rule's own: versions are chosen by hashes of ids, too.
    said = own_id.encode(errors="replace")
    return int.from_bytes(hashlib.blake2b(said, digest_size=8, person=b"headrace.log").digest(), "big")


def _mirror_id(parameters):
    if MIRROR_ID not in parameters:
        return ""
    try:
        found = json.loads(parameters).get(MIRROR_ID, "")
    except (AttributeError, ValueError):
        return ""
    return found if isinstance(found, str) else ""
