"""Whether a PyTorch program's answer moves without jumps when its numbers do, and whether its gradients do.

Operators are looked at, not numbers. What is not understood counts as a jump, which is always safe to say; so
does what may change a value behind the back of those who have it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from headrace.inference.explainer.torch_operators import Known, MayJump, Movement, Value, operated, worst

# What these say is known as soon as their inputs are.
_EVALUATED: Final[Mapping[str, Callable[..., object]]] = {
    "aten::__is__": operator.is_,
    "aten::__isnot__": operator.is_not,
    "aten::__not__": operator.not_,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
}


@dataclass(frozen=True, slots=True)
class Nature:
    """Whether an answer is known to be continuous, and its gradients to be the answer's."""

    continuous: bool
    differentiable: bool


_UNKNOWN: Final = Nature(continuous=False, differentiable=False)


def nature_of_script(program: torch.jit.ScriptModule, output: str, place: int) -> Nature:
    """Of a TorchScript program's output, by its name or place."""
    walk = _ScriptWalk()
    return walk.nature(lambda: walk.answer(program), output, place)


def nature_of_exported(program: ExportedProgram, output: str, place: int) -> Nature:
    """Of an exported program's output, by its name or place."""
    walk = _ExportedWalk()
    return walk.nature(lambda: walk.answer(program), output, place)


def chosen(answer: Any, output: str, place: int) -> Any:
    """Of what a program answers the output of this name, or at this place. Raises LookupError, TypeError."""
    if isinstance(answer, dict):
        return answer[output]
    return (answer if isinstance(answer, tuple | list) else (answer,))[place]


class _Walk:
    """Follows values through a program's operators, in the order in which they are computed."""

    def __init__(self) -> None:
        self.differentiable = True
        self._all_numbers = True

    def nature(self, answer: Callable[[], Any], output: str, place: int) -> Nature:
        try:
            movement = worst(chosen(answer(), output, place))
        except MemoryError:
            raise
        except Exception:
            # A program that is not understood may serve all the same.
            return _UNKNOWN
        moves = movement is Movement.MOVES
        return Nature(continuous=moves, differentiable=moves and self.differentiable)

    def operated(self, name: str, inputs: Mapping[str, Value], written: frozenset[str]) -> Movement:
        found = operated(name, inputs, written, all_numbers=self._all_numbers)
        self.differentiable &= not found.cut
        self._all_numbers &= not found.partial
        return found.movement


def _item(values: Value, index: Value) -> Value:
    match values, index:
        case list(), Known(int(place)) if -len(values) <= place < len(values):
            return values[place]
        case dict(), Known(str(name)) if name in values:
            return values[name]
        case _:
            return worst([values, index])


def _either(one: Value, other: Value) -> Value:
    match one, other:
        case Known(bool() | None as first), Known(bool() | None as second) if first is second:
            return one
        case _:
            return worst([one, other])


def _named(schema: Any, inputs: Sequence[Value]) -> tuple[dict[str, Value], frozenset[str]]:
    """An operator's inputs by their names, and those that it writes to."""
    arguments = schema.arguments
    written = frozenset(one.name for one in arguments if one.alias_info and one.alias_info.is_write)
    return dict(zip((one.name for one in arguments), inputs, strict=False)), written


class _ExportedWalk(_Walk):
    def answer(self, program: ExportedProgram) -> Any:
        signature = program.graph_signature
        moving = set(signature.user_inputs)
        inputs = [
            Movement.MOVES if node.name in moving else Movement.STILL
            for node in program.graph.nodes
            if node.op == "placeholder"
        ]
        found = self.outputs(program.graph, inputs)
        specs = signature.output_specs
        own = [value for value, spec in zip(found, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
        return pytree.tree_unflatten(own, program.call_spec.out_spec)

    def outputs(self, graph: Graph, inputs: Sequence[Value]) -> list[Movement]:
        known: dict[Node, Value] = {}
        left = iter(inputs)
        for node in graph.nodes:
            match node.op:
                case "placeholder":
                    known[node] = next(left)
                case "get_attr":
                    found = getattr(graph.owning_module, node.target, None)
                    known[node] = Known(found) if isinstance(found, GraphModule) else Movement.STILL
                case "call_function":
                    known[node] = self._called(node, known)
                case "output":
                    return [worst(_read(value, known)) for value in node.args[0]]
                case _:
                    raise MayJump
        raise MayJump

    def _called(self, node: Node, known: Mapping[Node, Value]) -> Value:
        inputs = [_read(value, known) for value in node.args]
        options = {name: _read(value, known) for name, value in node.kwargs.items()}
        if isinstance(node.target, OpOverload):
            schema = node.target._schema  # noqa: SLF001
            named, written = _named(schema, inputs)
            return self.operated(schema.name.removeprefix("aten::"), named | options, written)
        if node.target is operator.getitem:
            return _item(inputs[0], inputs[1])
        match inputs:
            case [Known(bool(enabled)), Known(GraphModule() as part), *rest] if (
                node.target is torch.ops.higher_order.wrap_with_set_grad_enabled
            ):
                self.differentiable &= enabled
                return list(self.outputs(part.graph, rest))
        still = worst([*inputs, *options.values()]) is Movement.STILL
        return Movement.STILL if still else Movement.JUMPS


def _read(value: Any, known: Mapping[Node, Value]) -> Value:
    match value:
        case Node():
            return known[value]
        case list() | tuple():
            return [_read(one, known) for one in value]
        case _:
            return Known(value)


class _ScriptWalk(_Walk):
    """Values are known by the names that they have in the graph, into which all calls are copied."""

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[str, Value] = {}

    def answer(self, program: torch.jit.ScriptModule) -> Value:
        graph = program.inlined_graph
        own, *inputs = graph.inputs()
        self._known[own.debugName()] = Known(program)
        for value in inputs:
            self._known[value.debugName()] = Movement.MOVES
        for node in graph.nodes():
            self._follow(node)
        # As PyTorch returns it: several outputs are a tuple.
        (answer,) = graph.outputs()
        return self._known[answer.debugName()]

    def _follow(self, node: Any) -> None:
        outputs = [value.debugName() for value in node.outputs()]
        for name, value in zip(outputs, self._values(node, len(outputs)), strict=True):
            self._known[name] = value

    def _values(self, node: Any, count: int) -> Sequence[Value]:
        inputs = [self._known[value.debugName()] for value in node.inputs()]
        match node.kind(), inputs:
            case "prim::If", [condition]:
                return self._branched(node, condition)
            case "prim::Enter", _:
                # `no_grad` is the one context that TorchScript has for tensors.
                self.differentiable = False
                return [Movement.STILL] * count
            case "aten::set_grad_enabled", _:
                self.differentiable = False
                return []
            case "prim::SetAttr", [Movement.STILL, value] if worst(value) is Movement.STILL:
                return []
            case "prim::SetAttr", _:
                raise MayJump
            case _ if any(True for _ in node.blocks()):
                raise MayJump
        held = _held(node, inputs, count)
        return [self._operated(node, inputs)] * count if held is None else held

    def _operated(self, node: Any, inputs: Sequence[Value]) -> Value:
        kind = node.kind()
        evaluate = _EVALUATED.get(kind)
        given = [value.value for value in inputs if isinstance(value, Known)]
        if evaluate and len(given) == len(inputs):
            return Known(evaluate(*given))
        if not kind.startswith("aten::"):
            named: dict[str, Value] = {str(place): value for place, value in enumerate(inputs)}
            movement = self.operated(kind, named, frozenset())
            if movement is Movement.JUMPS:
                # It may run code that is not seen here, and that writes to its inputs.
                raise MayJump
            return movement
        schema = torch._C.parse_schema(node.schema())  # noqa: SLF001
        return self.operated(kind.removeprefix("aten::"), *_named(schema, inputs))

    def _branched(self, node: Any, condition: Value) -> Sequence[Value]:
        first, second = node.blocks()
        match condition:
            case Known(value):
                return self._block(first if value else second)
            case Movement.STILL:
                both = zip(self._block(first), self._block(second), strict=True)
                return [_either(one, other) for one, other in both]
            case _:
                raise MayJump

    def _block(self, block: Any) -> list[Value]:
        for node in block.nodes():
            self._follow(node)
        return [self._known[value.debugName()] for value in block.outputs()]


def _held(node: Any, inputs: list[Value], count: int) -> Sequence[Value] | None:
    """What a node only names, puts together or takes apart; None where it does something else."""
    match node.kind(), inputs:
        case "prim::Constant", _:
            return [Known(node.output().toIValue())]
        case "prim::GetAttr", [Known(owner)]:
            return [Known(getattr(owner, node.s("name")))]
        case (("prim::ListConstruct" | "prim::TupleConstruct"), _):
            return [inputs]
        case "prim::DictConstruct", _ if all(isinstance(key, Known) for key in inputs[::2]):
            keys = [key.value for key in inputs[::2] if isinstance(key, Known)]
            return [dict(zip(keys, inputs[1::2], strict=True))]
        case (("prim::ListUnpack" | "prim::TupleUnpack"), [list(values)]) if len(values) == count:
            return values
        case (("prim::ListUnpack" | "prim::TupleUnpack"), [values]):
            return [worst(values)] * count
        case (("prim::TupleIndex" | "aten::__getitem__"), [values, index]):
            return [_item(values, index)]
        case "prim::unchecked_cast", [value]:
            return [value]
        case _:
            return None
