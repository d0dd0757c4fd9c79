"""The embedded stack's trace store: OTLP in, rows of `telemetry.spans` out.

Takes OTLP over gRPC (the services and Envoy) and over HTTP (Triton posts JSON). It stands in for a
collector and a tracing backend where nothing else is installed; with an OTLP endpoint of one's own
nothing comes here.
"""
