"""A trained network that says what is in a picture.

    befit.load("runs/edge/best").predict("photo.jpg").label

Pictures may be files, Pillow images, arrays, tensors, lists of these, or a folder; they are turned upright, scaled and cropped
as the training images were.

Shapes: N images, C channels, H height, W width, K classes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from befit.arch.space import Arch
from befit.arch.task import ImageTask
from befit.errors import BadData
from befit.vision.arrays import from_memory
from befit.vision.data import Images, normalised
from befit.vision.pixels import SUFFIXES, UNREADABLE, fitted, to_tensor, upright

Picture = str | Path | Image.Image | np.ndarray | Tensor
"""One image: a file, a Pillow image, or numbers (H, W), (C, H, W) or, of arrays, (H, W, C): bytes, or floats in 0..1."""

_BATCH = 64
_LUMINANCE = (0.299, 0.587, 0.114)
_SLACK = 1e-3


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network takes a picture for."""

    label: str
    """The most probable class."""
    probability: float
    """Of that class, 0..1, as the network sees it."""
    probabilities: Mapping[str, float]
    """Of every class, in the classes' order; they add up to 1."""
    image: str
    """The file, or the image's place in what was given."""


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """A network with everything needed to use it, and to build it again."""

    module: nn.Module
    """Normalised images (N, C, H, W) to logits (N, K)."""
    task: ImageTask
    classes: tuple[str, ...]
    """K names, in the order of the logits."""
    mean: tuple[float, ...]
    """Of each channel, in 0..1 if images are bytes."""
    std: tuple[float, ...]
    """Likewise."""
    span: tuple[float, float] = (0.0, 1.0)
    """Least and largest value that training images had; 0 and 1 if they were bytes."""
    arch: Arch
    blueprint: str
    """`cell`, `mobile`, or where the user's own class is imported from, as `module:Class`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the blueprint was made with."""

    def __post_init__(self) -> None:
        if len(self.classes) != self.task.classes:
            raise BadData(f"classifier: {len(self.classes)} names for {self.task.classes} classes; give one for each")
        if {len(self.mean), len(self.std)} != {self.task.channels} or min(self.std) <= 0:
            raise BadData(
                f"classifier: mean and std need {self.task.channels} numbers each, std above 0; got {self.mean}, {self.std}"
            )

    @staticmethod
    def of(
        module: nn.Module, data: Images, arch: Arch, *, blueprint: str, options: Mapping[str, Any] | None = None
    ) -> "Classifier":
        """`module` as it was trained on `data`."""
        pixels = data.train.images
        span = (0.0, 1.0) if pixels.dtype == torch.uint8 else (float(pixels.min()), float(pixels.max()))
        return Classifier(
            module=module,
            task=data.task,
            classes=data.classes,
            mean=data.mean,
            std=data.std,
            span=span,
            arch=arch,
            blueprint=blueprint,
            options=dict(options or {}),
        )

    @overload
    def predict(self, image: Image.Image | np.ndarray | Tensor) -> Prediction: ...
    @overload
    def predict(self, image: Sequence[Picture]) -> list[Prediction]: ...
    @overload
    def predict(self, image: str | Path) -> Any: ...
    def predict(self, image: Picture | Sequence[Picture]) -> Prediction | list[Prediction]:
        """What a picture shows; of a list of pictures, or a folder with all its subfolders, a list. Raises `BadData`."""
        if isinstance(image, str | Path) and Path(image).is_dir():
            return list(self.predict_each(_files(Path(image))))
        if isinstance(image, list | tuple):
            return list(self.predict_each(image))
        return next(self.predict_each([image]))  # type: ignore[list-item]

    def predict_each(self, pictures: Sequence[Picture]) -> Iterator[Prediction]:
        """Predictions one after the other; pictures are read as they are needed."""
        self.module.eval()
        for begin in range(0, len(pictures), _BATCH):
            some = pictures[begin : begin + _BATCH]
            logits = self.logits(torch.stack([self.prepared(one) for one in some]))
            for place, (one, row) in enumerate(zip(some, logits.double().softmax(1).tolist(), strict=True)):
                best = max(range(len(row)), key=row.__getitem__)
                yield Prediction(
                    label=self.classes[best],
                    probability=row[best],
                    probabilities=dict(zip(self.classes, row, strict=True)),
                    image=str(one) if isinstance(one, str | Path) else str(begin + place),
                )

    def logits(self, images: Tensor) -> Tensor:
        """(N, K) on the CPU of prepared images (N, C, H, W), where the module lies."""
        place = next(self.module.parameters()).device
        with torch.no_grad():
            return self.module(normalised(images.to(place), self.mean, self.std)).float().cpu()

    def prepared(self, picture: Picture) -> Tensor:
        """float32 (C, H, W) as the task wants it, not normalised yet. Raises `BadData`."""
        if isinstance(picture, str | Path | Image.Image):
            return self._from_bytes(_opened(picture))
        pixels, _ = from_memory(picture[None], [None], "the picture")
        if pixels.shape[1] not in (1, 3):
            raise BadData(f"predict: the picture has {pixels.shape[1]} channels; expected 1 (grey) or 3 (colour)")
        if pixels.dtype == torch.uint8:
            return self._from_bytes(Image.fromarray(pixels[0].permute(1, 2, 0).squeeze(-1).numpy()))
        least, most = pixels.min().item(), pixels.max().item()
        if self.takes_pictures and not -_SLACK <= least <= most <= 1 + _SLACK:
            raise BadData(
                f"predict: the picture has values from {least:.4g} to {most:.4g}; expected floats in 0..1 or bytes"
            )
        return self._fitted(pixels)

    @property
    def takes_pictures(self) -> bool:
        """Whether images are bytes, or floats as bytes divided by 255 are."""
        return self.span[0] >= 0 and self.span[1] <= 1

    def _from_bytes(self, image: Image.Image) -> Tensor:
        if not self.takes_pictures:
            raise BadData(
                f"predict: this network was trained on numbers from {self.span[0]:.4g} to {self.span[1]:.4g}, and how they "
                "come from a picture is not known; give a tensor prepared like the training images"
            )
        if self.task.channels not in (1, 3):
            raise BadData(f"predict: no picture has the {self.task.channels} channels of this task; give a tensor")
        picture = upright(image).convert("L" if self.task.channels == 1 else "RGB")
        return to_tensor(fitted(picture, self.task.height, self.task.width)).float() / 255

    def _fitted(self, pixels: Tensor) -> Tensor:
        """(1, C, H, W) floats with the task's channels and size, as pictures are brought to them; without the first 1."""
        height, width = self.task.height, self.task.width
        if pixels.shape[1] == 3 and self.task.channels == 1:
            pixels = (pixels * torch.tensor(_LUMINANCE).view(1, 3, 1, 1)).sum(1, keepdim=True)
        pixels = pixels.expand(-1, self.task.channels, -1, -1)
        if pixels.shape[-2:] != (height, width):
            scale = max(height / pixels.shape[-2], width / pixels.shape[-1])
            target = (max(height, round(pixels.shape[-2] * scale)), max(width, round(pixels.shape[-1] * scale)))
            pixels = F.interpolate(pixels, target, mode="bilinear", antialias=True, align_corners=False)
            top, left = (target[0] - height) // 2, (target[1] - width) // 2
            pixels = pixels[..., top : top + height, left : left + width]
        return pixels[0]


def _opened(picture: str | Path | Image.Image) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture
    if not Path(picture).is_file():
        raise BadData(f"predict: there is no file or folder {str(picture)!r}; give an image or a folder of images")
    try:
        with Image.open(picture) as image:
            return upright(image).copy()  # the file is closed after this
    except UNREADABLE as error:
        raise BadData(f"predict: {picture} cannot be read as an image ({error}); give another file") from error


def _files(folder: Path) -> list[Path]:
    files = sorted(one for one in folder.rglob("*") if one.suffix.lower() in SUFFIXES and one.is_file())
    if not files:
        raise BadData(f"predict: the folder {folder} holds no images ({', '.join(SUFFIXES[:4])}, …); give another")
    return files
