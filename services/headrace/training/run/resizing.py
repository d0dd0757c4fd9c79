"""Images in another size: a part of the model, so that clients send them as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from headrace.training.run.specification import Resize


class Resizer(nn.Module):
    """Each value of a new image is a weighted mean of those around its place: Pillow's `BILINEAR`, unrounded.

    An image that is made smaller is averaged and not sampled, so that no detail of it becomes a pattern that
    was not there. Two products with constant matrices, which every runtime computes in the same way; the
    resizing operators of ONNX and PyTorch do not know this filter.
    """

    def __init__(self, resizes: Sequence[Resize], prepared: int) -> None:
        """`resizes`: in the order of their values, which they do not share; `prepared`: values afterwards."""
        super().__init__()
        self._resizes = tuple(resizes)
        self._values = prepared + sum(resize.values - resize.to_values for resize in resizes)
        for index, resize in enumerate(resizes):
            self.register_buffer(f"rows_{index}", _weights(resize.height, resize.to_height))
            self.register_buffer(f"columns_{index}", _weights(resize.width, resize.to_width))

    def forward(self, raw: Tensor) -> Tensor:
        """Return [rows, values] FP32 with each image's values in the place of its raw ones; NaN stays NaN."""
        parts, end = [], 0
        for index, resize in enumerate(self._resizes):
            if resize.first > end:
                parts.append(raw[:, end : resize.first])
            end = resize.first + resize.values
            parts.append(self._resized(index, resize, raw[:, resize.first : end]))
        if end < self._values:
            parts.append(raw[:, end:])
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _resized(self, index: int, resize: Resize, raw: Tensor) -> Tensor:
        rows: Tensor = getattr(self, f"rows_{index}")
        columns: Tensor = getattr(self, f"columns_{index}")
        lower = torch.matmul(rows, raw.reshape(-1, resize.height, resize.width * resize.channels))
        pixels = lower.reshape(-1, resize.to_height, resize.width, resize.channels)
        return torch.matmul(columns, pixels).reshape(-1, resize.to_values)


def _weights(size: int, to: int) -> Tensor:
    """Return [to, size]: of each new value the shares of the old ones, which sum to 1."""
    scale = size / to
    # Of a larger image a value's neighbours are as far as they were.
    reach = max(scale, 1.0)
    centres = (torch.arange(to, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(size, dtype=torch.float64) + 0.5
    triangle = (1 - (places[None, :] - centres[:, None]).abs() / reach).clamp(min=0)
    return (triangle / triangle.sum(dim=1, keepdim=True)).float()
