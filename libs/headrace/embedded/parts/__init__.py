"""The stack's parts: each a program that is started, waited for and stopped."""

from headrace.embedded.parts.process import Part, PartFailed, free_port

__all__ = ["Part", "PartFailed", "free_port"]
