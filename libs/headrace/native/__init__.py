"""Functions compiled to machine code, and the columns of bytes that they work on."""

from headrace.native.compiler import compiled
from headrace.native.spans import Bools, Bytes, Float64s, Int64s, Spans, UInt64s

__all__ = ["Bools", "Bytes", "Float64s", "Int64s", "Spans", "UInt64s", "compiled"]
