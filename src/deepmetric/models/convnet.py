"""The small network of few-shot papers, for tiny images."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from deepmetric.errors import InputError
from deepmetric.models.preprocessing import Preprocessing


class ConvNet(nn.Module):
    """``blocks`` times 3x3 convolution, batch normalisation, ReLU, 2x2 max pooling (Vinyals et al. 2016, section 4.1).

    The feature map is [B, width, h, w] with h = H // 2**blocks, so images need a side of at least 2**blocks pixels.

    ``stages`` are the names of its blocks, for models that tap it.

    Args:
        blocks: number of blocks.
        width: channels of every block.
        in_channels: channels of the images.

    Raises:
        InputError: an argument below 1; in ``forward``, images too small for the blocks.
    """

    preprocessing = Preprocessing(size=32, resize=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def __init__(self, blocks: int = 4, width: int = 64, in_channels: int = 3) -> None:
        super().__init__()
        for name, value in (("blocks", blocks), ("width", width), ("in_channels", in_channels)):
            if value < 1:
                raise InputError(f"ConvNet: {name} is {value}; expected at least 1")
        self.blocks = nn.Sequential(
            *(_block(in_channels if i == 0 else width, width) for i in range(blocks)),
        )
        self.stages = [f"blocks.{i}" for i in range(blocks)]

    def forward(self, images: Tensor) -> Tensor:
        smallest = 2 ** len(self.blocks)
        if min(images.shape[-2:]) < smallest:
            raise InputError(
                f"ConvNet with {len(self.blocks)} blocks needs images of {smallest} x {smallest} pixels or more, "
                f"got {images.shape[-2]} x {images.shape[-1]}; give fewer blocks or a larger size"
            )
        return self.blocks(images)


def _block(in_channels: int, width: int) -> nn.Module:
    # No bias: the batch normalisation that follows takes every constant away.
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            pool=nn.MaxPool2d(2),
        )
    )
