"""Pictures become bytes: one way of decoding, turning upright, scaling and cropping, for training and for predicting alike.

Shapes: N images, C channels (1 grey, 3 colour), H height, W width.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from befit.errors import BadData

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""Files with these names are images; others in a folder are left alone."""

UNREADABLE = (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError)
"""What Pillow raises for files that are broken or no images."""

_BLOCK = 2_048
_SMALL = 16_384
_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One image that is not decoded yet."""

    name: str
    """As messages name it: a path, or a row of a table."""
    content: bytes | Path
    """A file's bytes, or the file."""


def upright(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, turned as its EXIF data say; transparency is dropped, 16-bit grey becomes 8-bit."""
    if "exif" in image.info or image.format == "TIFF":  # asking every image takes as long as decoding a small one
        image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency goes to RGB on this way without a warning
    return image.convert("L" if image.mode in ("1", "F", "LA", "La") else "RGB")


def fitted(image: Image.Image, height: int, width: int) -> Image.Image:
    """The image scaled until it just covers height x width, then cropped to that at its centre."""
    if (image.width, image.height) == (width, height):
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)


def decode_all(found: Sequence[Encoded], source: str, size: int | None) -> Tensor:
    """uint8 (N, C, H, W): grey if all images are, else colour; size x size if `size` is given, else as they are.

    Raises `BadData` for images that cannot be read (all are counted, some named) and, without `size`, for mixed sizes.
    """
    # Pillow decodes without the interpreter's lock, but for small images taking turns costs more than it brings.
    workers = min(8, os.cpu_count() or 1) if _bytes(found[:64]) > _SMALL else 1
    blocks, broken, sizes = list[Tensor](), list[str](), set[tuple[int, ...]]()
    with ThreadPoolExecutor(workers) as pool:
        run = pool.map if workers > 1 else map
        for start in range(0, len(found), _BLOCK):
            got = list(run(lambda one: _attempt(one, size), found[start : start + _BLOCK]))
            broken += [one for one in got if isinstance(one, str)]
            pictures = [one for one in got if not isinstance(one, str)]
            sizes |= {one.shape[:2] for one in pictures}
            # After the first trouble, images are read only to tell all of it.
            if not broken and len(sizes) == 1:
                blocks.append(_joined(pictures))
    if broken:
        rest = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise BadData(
            f"data: {len(broken)} of {len(found):,} images of {source} cannot be read: "
            f"{'; '.join(broken[:_SHOWN])}{rest}; remove or replace them"
        )
    if len(sizes) > 1:
        raise _mixed(sizes, source)
    colour = any(block.shape[1] == 3 for block in blocks)
    return torch.cat([block.expand(-1, 3, -1, -1) if colour else block for block in blocks])


def differ(found: Sequence[Encoded]) -> bool:
    """Whether images have several sizes, by their headers; what cannot be read is left for `decode_all` to tell."""
    sizes = set[tuple[int, int]]()
    for one in found:
        try:
            with Image.open(io.BytesIO(one.content) if isinstance(one.content, bytes) else one.content) as image:
                sizes.add(image.size)
        except UNREADABLE:
            continue
        if len(sizes) > 1:
            return True
    return False


def to_tensor(picture: Image.Image) -> Tensor:
    """uint8 (C, H, W) of an image of mode L or RGB."""
    return _joined([np.array(picture)])[0]


def _attempt(one: Encoded, size: int | None) -> "np.ndarray[Any, Any] | str":
    """Bytes (H, W) or (H, W, 3), or why there are none."""
    try:
        with Image.open(io.BytesIO(one.content) if isinstance(one.content, bytes) else one.content) as image:
            if size is not None:
                image.draft(None, (2 * size, 2 * size))  # a large JPEG is then decoded at a half, quarter or eighth
            picture = upright(image)
            return np.asarray(picture if size is None else fitted(picture, size, size))
    except UNREADABLE as error:
        return f"{one.name} ({_reason(error)})"


def _bytes(some: Sequence[Encoded]) -> float:
    """Of an image, on average."""
    sizes = [len(one.content) for one in some if isinstance(one.content, bytes)]
    sizes += [one.content.stat().st_size for one in some if isinstance(one.content, Path) and one.content.exists()]
    return sum(sizes) / max(1, len(sizes))


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "no image format that Pillow knows"
    return str(error) or type(error).__name__


def _joined(pictures: "Sequence[np.ndarray[Any, Any]]") -> Tensor:
    """uint8 (N, C, H, W)."""
    channels = max(1 if one.ndim == 2 else 3 for one in pictures)
    made = np.empty((len(pictures), channels, *pictures[0].shape[:2]), dtype=np.uint8)
    for place, one in enumerate(pictures):
        made[place] = one if one.ndim == 2 else one.transpose(2, 0, 1)
    return torch.from_numpy(made)


def _mixed(sizes: set[tuple[int, ...]], source: str) -> BadData:
    shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)[:_SHOWN])
    rest = f" and {len(sizes) - _SHOWN} more" if len(sizes) > _SHOWN else ""
    least = min(min(size) for size in sizes)
    advice = next((side for side in (224, 128, 96, 64, 48, 32) if side <= least), least)
    return BadData(
        f"data: the images of {source} have {len(sizes)} different sizes (wide x high): {shown}{rest}; "
        f"pass size={advice}, or another number of pixels, to scale each and crop it to a square"
    )
