"""Cuts any traceable module into layers, wherever a single tensor is alive."""

from __future__ import annotations

import itertools

from torch import fx, nn

from actors.errors import UserError


class _Tracer(fx.Tracer):
    """Looks inside the root and plain sequences only: a residual block stays whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) is not nn.Sequential


def fx_segments(module: nn.Module, key: str) -> dict[str, tuple[str, nn.Module]]:
    """Return name -> (prefix of its state names, module) of every layer, in order.

    A layer that is one sub-module keeps its qualified name; a longer stretch becomes a graph module that
    holds the original names.

    Raises:
        UserError: the module can't be traced, or has more than one input or output.
    """
    graph = _trace(module, key)
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or not nodes:
        raise UserError(f"{key}: {type(module).__name__} takes {len(inputs)} inputs, expected one tensor; wrap it")
    segments: dict[str, tuple[str, nn.Module]] = {}
    entry, stretch = inputs[0], []
    for index, node in enumerate(nodes):
        stretch.append(node)
        if _is_cut(nodes, index, inputs[0]):
            name, prefix, layer = _layer(module, graph, entry, stretch)
            segments[_unused(name, segments)] = (prefix, layer)
            entry, stretch = node, []
    if stretch:
        raise UserError(
            f"{key}: {type(module).__name__} returns several tensors, or computes some that it does not return, "
            f"expected one tensor; return that one only"
        )
    return segments


def _trace(module: nn.Module, key: str) -> fx.Graph:
    """Trace in both modes: what a forward asks `self.training` for would stay as it was when traced."""
    modes = {part: part.training for part in module.modules()}
    try:
        evaluation, training = (_Tracer().trace(module.train(mode)) for mode in (False, True))
    except Exception as error:
        raise UserError(
            f"{key}: {type(module).__name__} can't be traced by torch.fx ({error}); return an nn.Sequential instead"
        ) from None
    finally:
        for part, mode in modes.items():
            part.training = mode
    if str(evaluation) != str(training):
        raise UserError(
            f"{key}: the forward of {type(module).__name__} differs between training and evaluation, expected that "
            f"only its sub-modules do; use nn.Dropout, not functional.dropout"
        )
    return training


def _unused(name: str, segments: dict[str, tuple[str, nn.Module]]) -> str:
    """Return a name for a layer; a sub-module that is called again must not take the first call's place."""
    numbered = (f"{name}_{number}" for number in itertools.count(1))
    return next(free for free in itertools.chain([name], numbered) if free not in segments)


def _is_cut(nodes: list[fx.Node], index: int, first: fx.Node) -> bool:
    """Whether after nodes[index] its value is the only one that later nodes use."""
    before = {first, *nodes[:index]}
    return not any(user in nodes[index + 1 :] or user.op == "output" for node in before for user in node.users)


def _layer(module: nn.Module, graph: fx.Graph, entry: fx.Node, stretch: list[fx.Node]) -> tuple[str, str, nn.Module]:
    last = stretch[-1]
    if len(stretch) == 1 and last.op == "call_module" and last.args == (entry,) and not last.kwargs:
        name = str(last.target)
        return name, f"{name}.", module.get_submodule(name)
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {entry: part.placeholder("x")}
    for node in stretch:
        copies[node] = part.node_copy(node, lambda argument: copies[argument])
    part.output(copies[last])
    return last.name, "", fx.GraphModule(module, part)
