"""What Envoy's configuration says of versions that are being rolled out: shadows, and who gets them.

The version stamp decides for each request whether a shadow is asked, too, and names in headers the cluster
that Envoy then copies it to, the shadow's version, and the id that the prediction log knows both answers by.
The cluster's own script (deploy/envoy/mirror_stamp.lua) makes the copy one to that version. Envoy throws the
copy's answer away.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Final

from envoy.extensions.filters.http.lua.v3 import lua_pb2 as _lua  # noqa: F401 - registers its messages
from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2 as _codec  # noqa: F401
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2 as _http  # noqa: F401

from headrace.inference.domain.trials import Trial
from headrace.inference.xds.documents import EXTENSION, Document
from headrace.runtime.resources import deploy_path

# As in deploy/envoy/version_stamp.lua and mirror_stamp.lua.
MIRROR_CLUSTER_HEADER: Final = "x-headrace-mirror-cluster"
SHADOW_VERSION_HEADER: Final = "x-headrace-shadow-version"
MIRROR_ID_HEADER: Final = "x-headrace-mirror-id"
MIRROR_SUFFIX: Final = "-mirror"

# A shadow that hangs must not keep every request's copy: what is above this is not mirrored.
MAX_MIRRORED: Final = 256

# Of a route: a request is copied where the stamp has named a cluster.
MIRROR_POLICIES: Final = [{"cluster_header": MIRROR_CLUSTER_HEADER}]


def mirror_cluster(cluster: Document) -> Document:
    """A cluster's servers as those of mirrored requests."""
    name = cluster["name"] + MIRROR_SUFFIX
    mirror = deepcopy(cluster)
    mirror["name"] = mirror["load_assignment"]["cluster_name"] = name
    mirror["circuit_breakers"] = {
        "thresholds": [{"max_requests": MAX_MIRRORED, "max_pending_requests": MAX_MIRRORED}]
    }
    options = mirror.setdefault("typed_extension_protocol_options", {}).setdefault(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        {
            "@type": f"{EXTENSION}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http_protocol_options": {}},
        },
    )
    options["http_filters"] = [
        {
            "name": "envoy.filters.http.lua",
            "typed_config": {
                "@type": f"{EXTENSION}.filters.http.lua.v3.Lua",
                "default_source_code": {"inline_string": deploy_path("envoy/mirror_stamp.lua").read_text()},
            },
        },
        {
            "name": "envoy.filters.http.upstream_codec",
            "typed_config": {"@type": f"{EXTENSION}.filters.http.upstream_codec.v3.UpstreamCodec"},
        },
    ]
    return mirror


def trial_document(trial: Trial | None) -> Document:
    """What the version stamp has to know of a version that is being rolled out, as metadata."""
    if trial is None:
        return {}
    document: Document = {"version": str(trial.version)}
    if trial.mirrored:
        document["mirrored"] = trial.mirrored
    if trial.sticky_header:
        document["sticky"] = trial.sticky_header
    if trial.audience is not None:
        document["header"] = trial.audience.header
        document["values"] = dict.fromkeys(sorted(trial.audience.values), True)
    return {"trial": document}
