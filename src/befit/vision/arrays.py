"""Images that are in memory already: arrays, tensors, and what a loader yields.

Shapes: N images, C channels, H height, W width.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from befit.errors import BadData


def read_loader(loader: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """All that a loader yields, (N, ...) images and (N,) labels. Raises `BadData`."""
    expected = "a loader must yield pairs (images, labels) of tensors, as a DataLoader over a TensorDataset does"
    images, labels = list[Tensor](), list[Tensor]()
    for batch in loader:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise BadData(f"data: the loader yields {type(batch).__name__}; {expected}")
        images.append(torch.as_tensor(batch[0]).detach().cpu())
        labels.append(torch.as_tensor(batch[1]).detach().cpu())
    if not images:
        raise BadData(f"data: the loader yields nothing; {expected}")
    return torch.cat(images), torch.cat(labels)


def from_memory(images: Any, labels: Any, where: str) -> tuple[Tensor, Sequence[Any]]:
    """A copy (N, C, H, W) of uint8 or float32 and the labels, from arrays or tensors. Raises `BadData`."""
    expected = "expected (N, H, W), (N, C, H, W) or, of arrays, (N, H, W, C) numbers"
    is_array = not isinstance(images, Tensor)
    try:
        # A copy: the caller may go on to change what is theirs.
        pixels = (
            torch.from_numpy(np.array(images))
            if is_array
            else images.detach().cpu().clone(memory_format=torch.contiguous_format)
        )
    except TypeError as error:
        raise BadData(f"data: the images of {where} are no array of numbers ({error}); {expected}") from error
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and is_array and pixels.shape[-1] in (1, 3) and pixels.shape[1] not in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    if pixels.ndim != 4 or not pixels.numel():
        raise BadData(f"data: the images of {where} have the shape {tuple(np.shape(images))}; {expected}")
    return _pixels(pixels, where), np.asarray(labels).tolist()


def _pixels(pixels: Tensor, where: str) -> Tensor:
    """Whole numbers as bytes, others as finite float32."""
    if pixels.is_complex() or (pixels.is_floating_point() and not bool(torch.isfinite(pixels).all())):
        raise BadData(f"data: the images of {where} have values that are no finite numbers; replace them")
    if pixels.is_floating_point():
        return pixels.float()
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    least, most = int(pixels.min()), int(pixels.max())
    if least < 0 or most > 255:
        raise BadData(
            f"data: the images of {where} are whole numbers from {least} to {most}, but bytes go from 0 to 255; "
            "give them as floats"
        )
    return pixels.to(torch.uint8)
