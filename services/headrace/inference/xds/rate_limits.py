"""How many requests a second one client, and one model, may have of one Envoy."""

from __future__ import annotations

from typing import Final

from headrace.inference.xds.documents import EXTENSION, Document

# Of clients and models together; beyond, those that were not seen for longest begin with a full bucket again.
MAX_BUCKETS: Final = 10_000
# The address, nobody's by RFC 6666, that requests over Kafka come from: whoever sent them is not one client,
# and their topic holds them back. Who comes through a load balancer has another one behind it.
OVER_KAFKA: Final = "100::1"
_A_CLIENT: Final = {"key": "by", "value": "client"}
_NOT_OVER_KAFKA: Final = {
    "descriptor_key": _A_CLIENT["key"],
    "descriptor_value": _A_CLIENT["value"],
    "expect_match": False,
    "headers": [{"name": "x-forwarded-for", "string_match": {"exact": OVER_KAFKA}}],
}
_UNLIMITED: Final = {"max_tokens": 2**32 - 1, "tokens_per_fill": 2**32 - 1, "fill_interval": "1s"}


def rate_limits(client_rate: int, model_rate: int) -> list[Document]:
    """The filter that refuses what is too much, none where nothing is limited.

    It stands behind the version stamp, which notes the model of a request in the filters' metadata.
    """
    descriptors: list[Document] = []
    actions: list[Document] = []
    if client_rate:
        descriptors.append(_bucket(client_rate, _A_CLIENT, {"key": "remote_address"}))
        actions.append({"actions": [{"header_value_match": _NOT_OVER_KAFKA}, {"remote_address": {}}]})
    if model_rate:
        descriptors.append(_bucket(model_rate, {"key": "model"}))
        noted = {"key": "headrace", "path": [{"key": "model"}]}
        action = {"descriptor_key": "model", "metadata_key": noted, "source": "DYNAMIC"}
        actions.append({"actions": [{"metadata": action}]})
    if not descriptors:
        return []
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}, "runtime_key": "unused"}
    return [
        {
            "name": "envoy.filters.http.local_ratelimit",
            "typed_config": {
                "@type": f"{EXTENSION}.filters.http.local_ratelimit.v3.LocalRateLimit",
                "stat_prefix": "inference",
                "token_bucket": _UNLIMITED,
                "always_consume_default_token_bucket": False,
                "filter_enabled": always,
                "filter_enforced": always,
                "rate_limited_as_resource_exhausted": True,
                "max_dynamic_descriptors": MAX_BUCKETS,
                "descriptors": descriptors,
                "rate_limits": actions,
            },
        }
    ]


def _bucket(rate: int, *entries: Document) -> Document:
    """A bucket for each value of what has none here, which holds a second's requests."""
    return {
        "entries": [*entries],
        "token_bucket": {"max_tokens": rate, "tokens_per_fill": rate, "fill_interval": "1s"},
    }
