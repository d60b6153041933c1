"""The body of a block: some layers of the network in order, with state named as in the whole network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from actors.draws import DRAWING, forked_draws
from actors.networks.layer import Layer
from actors.seeds import seed_of

_DRAWLESS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm,
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Hardtanh,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Embedding, nn.ZeroPad2d,
    nn.PixelUnshuffle,
)  # fmt: skip
_MASK = (1 << 63) - 1
_VARIANTS = 16
"""Compiled variants that a layer may need."""


class Body(nn.Module):
    """Layers in order.

    Before a layer that may draw random numbers, the generator is seeded by (seed, layer name, draw): a
    layer's draws depend on neither cuts nor other blocks, and can be repeated.

    Args:
        layers: which layers to build.
        seed: of the run.
    """

    def __init__(self, layers: Sequence[Layer], *, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.names = [layer.name for layer in layers]
        self.prefixes = [layer.prefix for layer in layers]
        self.layers = nn.ModuleList([layer.build() for layer in layers])
        self.clones_input = False
        """Set where a layer of the user's writes to its input in a way that can't be switched off."""
        self.severed: tuple[str, ...] = ()
        """Layers behind which a training pass is cut in two: each part gets a credit of its own."""
        self._draw_seeds: list[int | None] = []
        self.find_draws()

    def find_draws(self) -> None:
        """Note which layers may draw random numbers; to be called again when layers have been swapped."""
        self._draw_seeds = [
            seed_of(self.seed, "draw", name) if _may_draw(layer) else None
            for name, layer in zip(self.names, self.layers, strict=True)
        ]

    @cached_property
    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, from the first pass on: to look for it takes longer than a small layer."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    @cached_property
    def statistics(self) -> tuple[Tensor, ...]:
        """All buffers, from the first pass on."""
        return tuple(self.buffers())

    def forward(self, x: Tensor, draw: int | None = None, inner: dict[str, Tensor] | None = None) -> Tensor:
        """Run the layers on x [B, ...]; `draw` names the random draws of this pass.

        With `inner`, no gradient goes from a severed layer's successor to it, and its output is put there.
        """
        if self.clones_input:
            x = x.clone()
        for name, layer, draw_seed in zip(self.names, self.layers, self._draw_seeds, strict=True):
            x = layer(x) if draw_seed is None else _drawn(layer, x, draw_seed, draw)
            if inner is not None and name in self.severed:
                inner[name] = x
                x = x.detach()
        return x

    @property
    def may_draw(self) -> bool:
        """Whether any layer may draw random numbers."""
        return any(draw_seed is not None for draw_seed in self._draw_seeds)

    def named_state(self) -> dict[str, Tensor]:
        """Return parameters and persistent buffers by their names in the whole network."""
        return dict(self._entries())

    def auxiliary_state(self) -> dict[str, Tensor]:
        """Return what a rule has added to layers and what is no part of the network, by name."""
        return dict(self._auxiliary_entries())

    def load_auxiliary_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy in what `auxiliary_state` returned."""
        with torch.no_grad():
            for name, tensor in self._auxiliary_entries():
                tensor.copy_(state[name])

    def load_named_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in, all of it or nothing; names that belong to other blocks are ignored.

        Raises:
            KeyError: a tensor is missing or has another shape.
        """
        for name, tensor in self._entries():
            if name not in state:
                raise KeyError(f"tensor {name!r} is missing")
            if state[name].shape != tensor.shape:
                raise KeyError(f"tensor {name!r} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
        with torch.no_grad():
            for name, tensor in self._entries():
                tensor.copy_(state[name])

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one output sample for an input sample of `shape`; changes nothing."""
        probe = copy.deepcopy(self).eval()
        device = next((tensor.device for _, tensor in self._entries()), torch.device("cpu"))
        with torch.no_grad(), forked_draws():
            return tuple(probe(torch.zeros(2, *shape, device=device)).shape[1:])

    def compile_layers(self) -> None:
        """Compile each layer by itself, so that the draws between them stay as they are.

        torch counts the variants of all layers together (training, evaluation, stashed weights) and from its
        limit on would silently compile no more.
        """
        settings = torch._dynamo.config
        settings.recompile_limit += _VARIANTS * len(self.layers)
        settings.accumulated_recompile_limit = max(settings.accumulated_recompile_limit, settings.recompile_limit)
        for layer in self.layers:
            layer._compiled_call_impl = torch.compile(_call_of(layer))

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, layer in zip(self.prefixes, self.layers, strict=True):
            added = set(_added_names(layer))
            for name, tensor in layer.state_dict(keep_vars=True).items():
                if name not in added:
                    yield prefix + name, tensor

    def _auxiliary_entries(self) -> Iterator[tuple[str, Tensor]]:
        for prefix, layer in zip(self.prefixes, self.layers, strict=True):
            state = layer.state_dict(keep_vars=True)
            for name in _added_names(layer):
                yield prefix + name, state[name]


def _call_of(layer: nn.Module) -> Callable[..., Any]:
    """Return a call of a layer as `nn.Module.compile` would compile it.

    In torch 2.11 that one leaves torch's own modules as they are: the compiler passes over their code unless code from
    elsewhere calls it.
    """

    def call(*arguments: Tensor) -> Any:
        return layer._call_impl(*arguments)

    return call


def _added_names(layer: nn.Module) -> Iterator[str]:
    """Yield the state names, within a layer, of tensors that a rule has put beside a module's own."""
    for path, module in layer.named_modules():
        for name in getattr(module, "added_tensors", ()):
            yield f"{path}.{name}" if path else name


def _may_draw(layer: nn.Module) -> bool:
    """Whether any part without children is not known to be free of random draws."""
    leaves = [module for module in layer.modules() if not any(module.children())]
    plain = all(isinstance(leaf, _DRAWLESS) and type(leaf).__module__.startswith("torch.nn.") for leaf in leaves)
    containers = (nn.Sequential, nn.ModuleList)
    return not (plain and all(type(m) in containers or m in leaves or _is_ours(m) for m in layer.modules()))


def _is_ours(module: nn.Module) -> bool:
    """Blocks with a forward of this package only add and activate."""
    return type(module).__module__.startswith("actors.networks.")


def _mixed(base: int, draw: int) -> int:
    """SplitMix64 (Steele et al. 2014): neighbouring draws give unrelated seeds."""
    z = (base + (draw + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) & _MASK


def _drawn(layer: nn.Module, x: Tensor, draw_seed: int, draw: int | None) -> Tensor:
    """Run a layer that may draw; threads that compute other blocks leave the generator alone meanwhile."""
    with DRAWING:
        if draw is not None:
            _seed_draws(_mixed(draw_seed, draw), x.device)
        return layer(x)


def _seed_draws(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
