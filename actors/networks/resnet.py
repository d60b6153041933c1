"""ResNet for small images (He et al. 2015, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt, field_validator
from torch import Tensor, nn

from actors.networks.layer import Make, image_shape


class Options(BaseModel):
    """Settings of `network.name: resnet`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: int = 20
    """6n + 2 layers: 20, 32, 44, 56, 110."""
    width: PositiveInt = 16
    """Channels of the first stage; doubled in each of the two that follow."""

    @field_validator("depth")
    @classmethod
    def _is_a_depth(cls, depth: int) -> int:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError("expected 6n + 2 layers, such as 20, 32, 56 or 110")
        return depth


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; [B, C, H, W] -> [B, width, H/stride, W/stride]."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels == width
            else nn.Sequential(nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(f(x) + shortcut(x))."""
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


def layers(options: Options, input_shape: tuple[int, ...], num_classes: int) -> list[tuple[str, Make]]:
    """Return `stem`, `stage1.block1`, ..., `output`."""
    depth, _, _ = image_shape("resnet", input_shape)
    width, per_stage = options.width, (options.depth - 2) // 6
    named: list[tuple[str, Make]] = [("stem", lambda: _stem(depth, width))]
    channels = width
    for stage in range(3):
        for number in range(per_stage):
            out, stride = width * 2**stage, 2 if stage and number == 0 else 1
            named.append((f"stage{stage + 1}.block{number + 1}", _block(channels, out, stride)))
            channels = out

    def output() -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    return [*named, ("output", output)]


def _stem(channels: int, width: int) -> nn.Module:
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


def _block(channels: int, width: int, stride: int) -> Make:
    return lambda: ResidualBlock(channels, width, stride)
