"""torchvision's classification models by name, without pre-trained weights."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from torch import nn

from actors.errors import UserError


class Options(BaseModel):
    """Settings of `network.name: torchvision_model`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "resnet18"
    """Name of the model in torchvision.models."""


def model(options: Options, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return the model with `num_classes` outputs; its first layer must fit the data's channels.

    Raises:
        UserError: torchvision has no such model.
    """
    import torchvision.models as models

    known = models.list_models(module=models)
    if options.model not in known:
        raise UserError(
            f"network.model: got {options.model!r}, expected a model of torchvision such as resnet18 or "
            f"vgg11_bn; `python -c 'import torchvision; print(torchvision.models.list_models())'` lists them"
        )
    return models.get_model(options.model, weights=None, num_classes=num_classes)
