"""The object store: a local folder or S3, by one address."""

from headrace.objects.store import ObjectStore

__all__ = ["ObjectStore"]
