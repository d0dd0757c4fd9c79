"""Envoy's control plane: resources, and the delta aggregated discovery service that hands them out."""
