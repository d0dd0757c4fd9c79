"""Which of PyTorch's operators are continuous, and what they make of values that move.

One that is not on the lists here counts as a jump, which is always safe to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias

import torch

# Continuous in each of their inputs, wherever they answer with a number, and with gradients that are theirs.
_CONTINUOUS: Final = re.compile(
    "abs|absolute|_adaptive_avg_pool2d|adaptive_avg_pool[123]d|add|addcmul|addmm|addmv|alias|amax|amin|asinh|"
    "atan|avg_pool[123]d|baddbmm|bilinear|bmm|broadcast_to|cat|celu|chunk|clamp|clamp_max|clamp_min|clip|"
    "clone|concat|concatenate|constant_pad_nd|contiguous|conv[123]d|conv_transpose[123]d|_?convolution|copy|"
    "cos|cosh|cumsum|detach|detach_copy|diagonal|dot|dropout|einsum|elu|erf|erfc|exp|expand|expand_as|expm1|"
    "feature_dropout|flatten|flip|gelu|glu|group_norm|hardsigmoid|hardswish|hardtanh|hstack|instance_norm|"
    "layer_norm|leaky_relu|lerp|lift_fresh_copy|linear|log|log10|log1p|log2|log_sigmoid|_?log_softmax|"
    "logaddexp|logsumexp|matmul|max|max_pool[123]d|maximum|mean|min|minimum|mish|mm|movedim|mul|multiply|mv|"
    "nan_to_num|narrow|native_group_norm|native_layer_norm|neg|negative|outer|pad|permute|pixel_shuffle|prelu|"
    "prod|reflection_pad[12]d|relu|relu6|repeat|replicate_pad[12]d|reshape|rms_norm|roll|rsqrt|rsub|"
    "scaled_dot_product_attention|select|selu|sigmoid|silu|sin|sinh|slice|_?softmax|softplus|softshrink|split|"
    "split_with_sizes|sqrt|square|squeeze|stack|std|sub|subtract|sum|swapaxes|t|tanh|tile|to|_to_copy|"
    "transpose|tril|triu|unbind|unflatten|unfold|_unsafe_view|unsqueeze|upsample_bilinear2d|"
    "upsample_nearest2d|var|view|view_as|vstack"
)
# Continuous in these inputs; the others choose, or divide.
_CHOOSING: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(("gather", "index", "index_select", "take", "take_along_dim"), frozenset(("self",))),
    **dict.fromkeys(("div", "divide", "true_divide", "pow"), frozenset(("self",))),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), frozenset(("input",))),
    "where": frozenset(("self", "other")),
    "masked_fill": frozenset(("self", "value")),
}
# With such an input it is another operator: one that answers places, too, or reads or takes on another type.
_ANOTHER: Final = {"max": "dim", "min": "dim", "to": "other", "view": "dtype"}
# The same for all numbers.
_CONSTANT: Final = re.compile(
    "dim|(empty|full|ones|zeros)_like|is_floating_point|isnan|len|new_(empty|full|ones|zeros)|(sym_)?numel|"
    "(sym_)?size|prim::(device|dtype|layout)"
)
# What these answer is of the type of `self`, which is a float's if it moves.
_TYPED: Final = frozenset(("copy", "masked_fill"))
# No number everywhere: of what they answer, whether it is one depends on the numbers.
_PARTIAL: Final = frozenset(("log", "log10", "log1p", "log2", "pow", "rsqrt", "sqrt"))
_ASKS_FOR_NUMBERS: Final = frozenset(("isnan", "nan_to_num"))
# Gradients stop here.
_CUT: Final = frozenset(("detach", "detach_copy"))
# Those with more than a few digits, and TorchScript's numbers for them.
_FLOATS: Final = (torch.float16, torch.float32, torch.float64, torch.bfloat16, 5, 6, 7, 15)


class Movement(IntEnum):
    """What a value does when the program's numbers move a little."""

    STILL = 0
    MOVES = 1
    JUMPS = 2


@dataclass(frozen=True, slots=True)
class Known:
    """A value that is in the program itself."""

    value: Any


Value: TypeAlias = "Movement | Known | list[Value] | dict[str, Value]"


class MayJump(Exception):  # noqa: N818 - what it is
    """Of the program as a whole no more can be said."""


@dataclass(frozen=True, slots=True)
class Operated:
    """What an operator answers; whether gradients stop in it; whether it answers with no number to some."""

    movement: Movement
    cut: bool = False
    partial: bool = False


def operated(
    name: str, inputs: Mapping[str, Value], written: frozenset[str], *, all_numbers: bool
) -> Operated:
    """What an operator makes of inputs by name.

    `written`: the inputs that it writes to; `all_numbers`: whether no operator before it was partial. Raises
    MayJump where others may see what it does not answer.
    """
    if any(isinstance(inputs.get(key), list | dict) for key in written):
        # What is known of a list's or dictionary's parts is of before.
        raise MayJump
    moved = {key for key, value in inputs.items() if worst(value) is Movement.MOVES}
    jumped = any(worst(value) is Movement.JUMPS for value in inputs.values())
    if not moved and not jumped:
        return Operated(Movement.STILL)
    bare = name.removesuffix("_") if written else name
    jumped |= bare in _ASKS_FOR_NUMBERS and not all_numbers
    passes = not jumped and _passes(bare, inputs, moved)
    # Others may have what is written to, whole or in part: it moves already, and goes on so.
    if written and not (passes and written <= moved):
        raise MayJump
    if _CONSTANT.fullmatch(bare) and not jumped:
        return Operated(Movement.STILL)
    if not passes:
        return Operated(Movement.JUMPS)
    return Operated(Movement.MOVES, cut=bare in _CUT, partial=bare in _PARTIAL)


def _passes(name: str, inputs: Mapping[str, Value], moved: set[str]) -> bool:
    if not all(_is_neutral(key, value) for key, value in inputs.items()) or _ANOTHER.get(name) in inputs:
        return False
    if name in _TYPED and "self" not in moved:
        return False
    return bool(_CONTINUOUS.fullmatch(name)) or moved <= _CHOOSING.get(name, frozenset())


def _is_neutral(name: str, value: Value) -> bool:
    """Whether an option leaves an operator what it is: no rounding, no chance, no other rows."""
    match name, value:
        case "dtype", Known(kind):
            return kind is None or kind in _FLOATS
        case (("train" | "training" | "dropout_p" | "rounding_mode"), _):
            return isinstance(value, Known) and not value.value
        case "exponent", _:
            # 1 / x jumps at zero.
            return isinstance(value, Known) and isinstance(value.value, int | float) and value.value >= 0
        case _:
            return name != "dtype"


def worst(value: Value) -> Movement:
    """Of all that is in it."""
    match value:
        case Movement():
            return value
        case Known():
            return Movement.STILL
        case dict():
            return max(map(worst, value.values()), default=Movement.STILL)
        case _:
            return max(map(worst, value), default=Movement.STILL)
