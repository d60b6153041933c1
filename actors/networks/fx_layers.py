"""Cuts any traceable module into layers, wherever a single tensor is alive."""

from __future__ import annotations

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
    try:
        graph = _Tracer().trace(module)
    except Exception as error:
        raise UserError(
            f"{key}: {type(module).__name__} can't be traced by torch.fx ({error}); return an nn.Sequential instead"
        ) from None
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
            segments[name] = (prefix, layer)
            entry, stretch = node, []
    held = {prefix + name for prefix, layer in segments.values() for name in layer.state_dict()}
    if stretch or held != set(module.state_dict()):
        raise UserError(
            f"{key}: {type(module).__name__} can't be cut so that every weight belongs to one layer "
            f"(shared or unused sub-modules); return an nn.Sequential instead"
        )
    return segments


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
