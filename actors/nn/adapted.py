"""Changes a layer so that it takes another number of channels or features, and makes its weights anew."""

from __future__ import annotations

from typing import Any

from torch import nn

from actors.networks.body import Body
from actors.networks.layer import Layer
from actors.networks.resnet import ResidualBlock

_BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_ARGUMENTS = ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")


class DoesNotFit(Exception):
    """A layer can't be made to take samples of a shape; the message says why."""


def adapted(module: nn.Module, was: tuple[int, ...], shape: tuple[int, ...]) -> nn.Module:
    """Return a layer like `module` for samples of another shape, with fresh initial weights.

    Only what depends on the number of channels or features changes: as a rule the first convolution or
    linear layer. Weights are drawn from torch's global generator; parameters of a part without
    `reset_parameters` keep their values.

    Args:
        module: the layer; must belong to the caller.
        was: shape of one sample of its input so far.
        shape: shape of one sample of its input from now on.

    Raises:
        DoesNotFit: the layer is of a kind that can't be changed, or fails on samples of that shape.
    """
    found = _adapted(module, was, shape)
    for part in found.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    return found


def output_shape(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of one output sample for an input sample of `shape`; changes nothing.

    Raises:
        DoesNotFit: the layer fails on samples of that shape.
    """
    try:
        return Body([Layer("layer", lambda: module, "")], seed=0).output_shape(shape)
    except Exception as error:  # whatever a layer of the user's raises
        raise DoesNotFit(str(error).split("\n")[0]) from None


def _adapted(module: nn.Module, was: tuple[int, ...], shape: tuple[int, ...]) -> nn.Module:
    if shape == was or not any(True for _ in module.parameters()):
        return module
    kind, sizes = type(module), vars(module)
    if kind is nn.Sequential:
        return _sequence(module, was, shape)
    if isinstance(module, ResidualBlock):
        first = module.conv1
        same = shape[0] == first.in_channels
        return module if same else ResidualBlock(shape[0], first.out_channels, first.stride[0])
    if kind in _CONV and (shape[0] == sizes["in_channels"] or sizes["groups"] == 1):
        return kind(shape[0], **_kept(module, *_CONV_ARGUMENTS), bias=module.bias is not None)
    if kind is nn.Linear:
        return nn.Linear(shape[-1], sizes["out_features"], bias=module.bias is not None)
    if kind in _BATCH_NORM:
        return kind(shape[0], **_kept(module, "eps", "momentum", "affine", "track_running_stats"))
    if kind is nn.GroupNorm and shape[0] % sizes["num_groups"] == 0:
        return nn.GroupNorm(num_channels=shape[0], **_kept(module, "num_groups", "eps", "affine"))
    if kind is nn.LayerNorm:
        return nn.LayerNorm(
            list(shape[-len(sizes["normalized_shape"]) :]), **_kept(module, "eps", "elementwise_affine")
        )
    raise DoesNotFit(f"a {kind.__name__} made for {was} has no known form for {shape}")


def _sequence(module: nn.Module, was: tuple[int, ...], shape: tuple[int, ...]) -> nn.Sequential:
    parts: list[nn.Module] = []
    for child in module.children():
        after = output_shape(child, was)
        parts.append(_adapted(child, was, shape))
        was, shape = after, output_shape(parts[-1], shape)
    return nn.Sequential(*parts)


def _kept(module: nn.Module, *names: str) -> dict[str, Any]:
    return {name: getattr(module, name) for name in names}
