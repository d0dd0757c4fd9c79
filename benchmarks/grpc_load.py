"""The load generator that tuning uses too, under the name that the benchmarks know."""

from headrace.rpc.load import Outcome, load, paced_load

__all__ = ["Outcome", "load", "paced_load"]
