"""BN-Inception, the backbone of most published tables."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepmetric.models.preprocessing import Preprocessing

# Channels of an inception block: 1x1; 3x3 (reduce, out); double 3x3 (reduce, first and second); projection of the
# pooled branch. 0: no such branch; a block without projection halves the resolution.
BLOCKS: dict[str, tuple[int, tuple[int, int], tuple[int, int], int, str]] = {
    "3a": (64, (64, 64), (64, 96), 32, "avg"),
    "3b": (64, (64, 96), (64, 96), 64, "avg"),
    "3c": (0, (128, 160), (64, 96), 0, "max"),
    "4a": (224, (64, 96), (96, 128), 128, "avg"),
    "4b": (192, (96, 128), (96, 128), 128, "avg"),
    "4c": (160, (128, 160), (128, 160), 128, "avg"),
    "4d": (96, (128, 192), (160, 192), 128, "avg"),
    "4e": (0, (128, 192), (192, 256), 0, "max"),
    "5a": (352, (192, 320), (160, 224), 128, "avg"),
    "5b": (352, (192, 320), (192, 224), 128, "max"),
}


class BNInception(nn.Module):
    """Inception with batch normalisation (Ioffe and Szegedy, ICML 2015), as converted from the authors' Caffe model.

    Names and shapes are those of the widely used file ``bn_inception-52deb4733.pth``, which ``weights`` takes; its
    classifier is left out. 10.3 million parameters, feature map [B, 1024, h, w] with h near H / 32. The weights are
    for BGR in 0-255 less the mean (104, 117, 128), which its ``preprocessing`` says.

    ``forward`` takes normalised images [B, 3, H, W], of 32 pixels or more a side.
    """

    preprocessing = Preprocessing(
        size=224,
        resize=256,
        mean=(128 / 255, 117 / 255, 104 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
        bgr=True,
    )

    def __init__(self) -> None:
        super().__init__()
        self.conv1_7x7_s2 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        self.conv1_7x7_s2_bn = nn.BatchNorm2d(64)
        self.conv2_3x3_reduce = nn.Conv2d(64, 64, 1)
        self.conv2_3x3_reduce_bn = nn.BatchNorm2d(64)
        self.conv2_3x3 = nn.Conv2d(64, 192, 3, padding=1)
        self.conv2_3x3_bn = nn.BatchNorm2d(192)
        width = 192
        for name, block in BLOCKS.items():
            width = self._add_block(f"inception_{name}", width, *block)
            # A mark without weights, so that forward hooks find each block's output by name.
            self.add_module(f"inception_{name}_output", nn.Identity())
        # Where HDC divides the network.
        self.stages = [f"inception_{name}_output" for name in ("4a", "4d", "5b")]

    def forward(self, images: Tensor) -> Tensor:
        x = self._conv("conv1_7x7_s2", images)
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        x = self._conv("conv2_3x3", self._conv("conv2_3x3_reduce", x))
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        for name in BLOCKS:
            x = self._block(name, x)
        return x

    def adapt_weights(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The converted file as this network has it: batch normalisation [1, C] there is [C] here, no classifier."""
        return {
            key: value.squeeze(0) if value.ndim == 2 and "_bn." in key else value
            for key, value in state.items()
            if not key.startswith(("last_linear.", "fc."))
        }

    def _add_block(
        self,
        name: str,
        width: int,
        one: int,
        three: tuple[int, int],
        double: tuple[int, int],
        proj: int,
        _: str,
    ) -> int:
        stride = 1 if proj else 2
        if one:
            self._add_conv(f"{name}_1x1", width, one, 1)
        self._add_conv(f"{name}_3x3_reduce", width, three[0], 1)
        self._add_conv(f"{name}_3x3", three[0], three[1], 3, stride)
        self._add_conv(f"{name}_double_3x3_reduce", width, double[0], 1)
        self._add_conv(f"{name}_double_3x3_1", double[0], double[1], 3)
        self._add_conv(f"{name}_double_3x3_2", double[1], double[1], 3, stride)
        if proj:
            self._add_conv(f"{name}_pool_proj", width, proj, 1)
        return one + three[1] + double[1] + (proj or width)

    def _add_conv(self, name: str, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        self.add_module(name, nn.Conv2d(inputs, outputs, size, stride, padding=size // 2))
        self.add_module(f"{name}_bn", nn.BatchNorm2d(outputs))

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return F.relu(getattr(self, f"{name}_bn")(getattr(self, name)(x)))

    def _block(self, name: str, x: Tensor) -> Tensor:
        one, _, _, proj, pool = BLOCKS[name]
        at = f"inception_{name}"
        branches = [self._conv(f"{at}_1x1", x)] if one else []
        branches.append(self._conv(f"{at}_3x3", self._conv(f"{at}_3x3_reduce", x)))
        double = self._conv(f"{at}_double_3x3_1", self._conv(f"{at}_double_3x3_reduce", x))
        branches.append(self._conv(f"{at}_double_3x3_2", double))
        if not proj:
            # Of an odd side the convolutions beside it keep half rounded up; so does the pooling with a border.
            border = (x.shape[2] % 2, x.shape[3] % 2)
            branches.append(F.max_pool2d(x, 3, stride=2, padding=border, ceil_mode=True))
        else:
            pooled = (
                F.avg_pool2d(x, 3, stride=1, padding=1)
                if pool == "avg"
                else F.max_pool2d(x, 3, stride=1, padding=1)
            )
            branches.append(self._conv(f"{at}_pool_proj", pooled))
        return getattr(self, f"{at}_output")(torch.cat(branches, dim=1))
