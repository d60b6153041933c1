"""Cuts any traceable module into layers, wherever one tensor is alive and no weight is used on both sides."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from actors.errors import UserError

_NO_TENSOR = frozenset({
    "chunk", "split", "tensor_split", "unbind", "max", "min", "sort", "topk",
    "tolist", "item", "size", "dim", "ndimension", "numel", "stride",
})  # fmt: skip
"""Calls that may return a number or several tensors; a cut after one is never taken."""


class _Tracer(fx.Tracer):
    """Looks inside the root and plain sequences only: a residual block stays whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is not nn.Sequential

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        training = root.training
        try:
            return super().trace(root, concrete_args)
        finally:
            root.training = training

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        created = super().create_args_for_root(root_fn, is_module, concrete_args)
        # A plain bool would be frozen into the graph: dropout(x, training=self.training) would drop for ever.
        self.root.training = self.create_proxy("get_attr", "training", (), {})  # type: ignore[assignment]
        return created


def fx_segments(module: nn.Module, key: str) -> dict[str, tuple[str, nn.Module]]:
    """Return name -> (prefix of its state names, module) of every layer, in order.

    A layer that is one sub-module keeps its qualified name; a longer stretch becomes a graph module that
    holds the original names. Calls that share weights end up in one layer.

    Raises:
        UserError: the module can't be traced, has more than one input or output, or holds unused weights.
    """
    kind = type(module).__name__
    try:
        graph = _Tracer().trace(module)
    except Exception as error:
        raise UserError(
            f"{key}: {kind} can't be traced by torch.fx ({error}); return an nn.Sequential instead"
        ) from None
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    nodes = [node for node in graph.nodes if node.op.startswith("call_")]
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    if len(inputs) != 1:
        raise UserError(f"{key}: {kind} takes {len(inputs)} inputs, expected one tensor; wrap it")
    if result not in nodes:
        raise UserError(f"{key}: {kind} returns {result}, expected one computed tensor; wrap it")
    segments: dict[str, tuple[str, nn.Module]] = {}
    entry, start = inputs[0], 0
    for end in [*_cuts(module, inputs[0], nodes, result), len(nodes)]:
        last = result if end == len(nodes) else nodes[end - 1]
        name, prefix, layer = _layer(module, entry, nodes[start:end], last)
        while name in segments:  # a module without weights that is called again
            name = last.name if name != last.name else f"{name}_again"
        segments[name] = (prefix, layer)
        entry, start = last, end
    held = {prefix + name for prefix, layer in segments.values() for name in layer.state_dict()}
    unused = [name for name in module.state_dict() if name not in held]
    if unused:
        raise UserError(
            f"{key}: {kind} holds {unused[0]!r} ({len(unused)} tensors in all) but never uses it, expected "
            f"every weight in some layer; remove it"
        )
    return segments


def _cuts(module: nn.Module, first: fx.Node, nodes: Sequence[fx.Node], result: fx.Node) -> list[int]:
    """Return each i such that nodes[i:] need one value of nodes[:i], the last, and none of their weights."""
    order = {node: index for index, node in enumerate(nodes)}
    last_use: dict[Any, int] = {first: max((order.get(user, -1) for user in first.users), default=-1)}
    for index, node in enumerate(nodes):
        last_use[node] = max((order.get(user, -1) for user in node.users), default=-1)
        for weight in _weights(module, node):
            last_use[weight] = index
    busy, cuts = last_use[first], []
    for index, node in enumerate(nodes[: order[result]]):
        busy = max([busy, *(last_use[weight] for weight in _weights(module, node))])
        if busy <= index < last_use[node] and _is_tensor(node):
            cuts.append(index + 1)
        busy = max(busy, last_use[node])
    return cuts


def _weights(module: nn.Module, node: fx.Node) -> set[int]:
    """Identities of the parameters and buffers that a call uses."""
    found: set[int] = set()
    if node.op == "call_module":
        layer = module.get_submodule(str(node.target))
        found |= {id(tensor) for tensor in [*layer.parameters(), *layer.buffers()]}
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            value = operator.attrgetter(str(source.target))(module)
            found |= {id(value)} if isinstance(value, Tensor) else set()
    return found


def _is_tensor(node: fx.Node) -> bool:
    """Whether a value is surely one tensor; nothing has run, so this goes by the calls around it."""
    if node.target is operator.getitem and not all(_is_tensor(source) for source in node.all_input_nodes):
        return False  # part of a tuple: a shorter one, a number or a tensor
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op != "call_module" and (name in _NO_TENSOR or node.target is getattr):
        return False
    return not any(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)


def _layer(module: nn.Module, entry: fx.Node, stretch: Sequence[fx.Node], last: fx.Node) -> tuple[str, str, nn.Module]:
    if len(stretch) == 1 and last.op == "call_module" and last.args == (entry,) and not last.kwargs:
        name = str(last.target)
        return name, f"{name}.", module.get_submodule(name)
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {entry: part.placeholder("x")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies and node.op == "get_attr":
            copies[node] = part.node_copy(node)
        return copies[node]

    for node in stretch:
        copies[node] = part.node_copy(node, copied)
    part.output(copies[last])
    return last.name, "", fx.GraphModule(module, part)
