"""Scheduling: pipelines, the jobs that train their models, the nodes that run them, and what runs where."""
