"""Datasets: valid samples from events, versions of them, and the events that were rejected."""
