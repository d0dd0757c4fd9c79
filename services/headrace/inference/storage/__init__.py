"""Deployments, rollouts, predictions and feedback in PostgreSQL."""
