"""Deployments and rollouts on Triton behind Envoy, the prediction log and feedback."""
