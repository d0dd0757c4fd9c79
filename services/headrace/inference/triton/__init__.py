"""Triton: its model repository and its model control."""
