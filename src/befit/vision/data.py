"""Labelled images in, three splits out: to train on, to choose by, and a test split that is opened once.

    source -> `load_images` -> Images(train, validation, test: Sealed) -> train, choose -> test.open()

What a source does not bring is held out of its training images, the same share of every class. The test split is drawn the
same way whatever the seed, so that figures of different runs are about the same images. Images that came as bytes stay
bytes; `Images.normalised` makes of a batch what networks are given.

Shapes: N images, B of a batch, C channels, H height, W width.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from befit.arch.task import ImageTask
from befit.errors import BadData
from befit.vision.arrays import from_memory, read_loader
from befit.vision.pixels import decode_all, differ
from befit.vision.sources import Found, Labelled, find

TEST_SHARE = 0.2
"""Of every class, held out for the test where the source has no test split."""

_TEST_SEED = 20_201
_LEAST_SPREAD = 1e-3
_COUNTED = 4_096


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images and their labels."""

    images: Tensor
    """(N, C, H, W), uint8 or float32."""
    labels: Tensor
    """(N,) int64, places among the classes."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> "Split":
        """The images at these places."""
        return Split(images=self.images[rows], labels=self.labels[rows])

    def resized(self, side: int) -> "Split":
        """The images scaled, with antialiasing, until their shorter side is `side` pixels."""
        return Split(images=resized(self.images, side), labels=self.labels)


class Sealed:
    """The test split. It can be opened once; its copies at other resolutions share the seal."""

    def __init__(self, split: Split) -> None:
        self._split, self._side, self._seal = split, None, [False]

    def __len__(self) -> int:
        return len(self._split)

    @property
    def opened(self) -> bool:
        """Whether somebody has looked."""
        return self._seal[0]

    def open(self) -> Split:
        """The split. Raises `RuntimeError` the second time: what was chosen after a look has no unseen test left."""
        if self._seal[0]:
            raise RuntimeError("the test split has been opened before; choose by the validation split, and test once")
        self._seal[0] = True
        return self._split if self._side is None else self._split.resized(self._side)

    def resized(self, side: int) -> "Sealed":
        """The same split and seal, opened at another resolution."""
        other = Sealed(self._split)
        other._side, other._seal = side, self._seal
        return other

    def digest(self) -> bytes:
        """A hash of the content, which tells nothing about it."""
        return _hash(self._split.images, self._split.labels)


@dataclass(frozen=True, kw_only=True)
class Images:
    """A classification task with its data."""

    train: Split
    """What weights are fitted to."""
    validation: Split
    """What architectures and settings are chosen by."""
    test: Sealed
    """For the final table only."""
    classes: tuple[str, ...]
    """Names, in the order of the labels."""
    mean: tuple[float, ...]
    """Of each channel over the training images, in 0..1 for bytes, else in the images' own unit."""
    std: tuple[float, ...]
    """Standard deviation likewise; more than 0."""
    source: str
    """Where the images come from, as messages and reports name it."""
    notes: tuple[str, ...] = field(default=())
    """What a reader of results should know: which splits were held out, what was not read."""

    @property
    def task(self) -> ImageTask:
        """Channels, height, width and number of classes."""
        _, channels, height, width = self.train.images.shape
        return ImageTask(channels=channels, height=height, width=width, classes=len(self.classes))

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any pixel, label, class or place in a split."""
        # Not of mean and std: they follow from the pixels, and their last digits depend on the number of threads.
        state = hashlib.sha256(repr(self.classes).encode())
        for split in (self.train, self.validation):
            state.update(_hash(split.images, split.labels))
        state.update(self.test.digest())
        return state.hexdigest()[:16]

    def normalised(self, batch: Tensor) -> Tensor:
        """What networks are given: float32 (B, C, H, W) of mean 0 and deviation 1 over the training images."""
        return normalised(batch, self.mean, self.std)

    def subset(self, share: float, seed: int = 0) -> "Images":
        """With only `share` (0..1) of every class's training images; validation, test and normalisation stay."""
        if not 0 < share <= 1:
            raise BadData(f"data: a subset's share must be above 0 and at most 1, got {share}")
        if share == 1:
            return self
        kept, _ = _held_out(self.train.labels, 1 - share, seed)
        return replace(self, train=self.train.take(kept))

    def resized(self, side: int) -> "Images":
        """All splits scaled to `side` pixels (the shorter side where images are not square)."""
        if side < 1:
            raise BadData(f"data: images cannot be resized to {side} pixels; at least 1 is needed")
        if side == min(self.task.height, self.task.width):
            return self
        return replace(
            self,
            train=self.train.resized(side),
            validation=self.validation.resized(side),
            test=self.test.resized(side),
        )


def load_images(
    source: str | None = None,
    *,
    validation: float = 0.2,
    seed: int = 0,
    size: int | None = None,
    mixed: int | None = None,
) -> Images:
    """Images from the embedded digits (None or "digits"), a folder, a parquet file or a data set of the hub.

    `size`: pixels of each side, to which images are scaled and cropped; where they differ in size one is needed, `mixed` if it
    is given. `validation`: the share of training images held out, drawn by `seed`, where the source has no validation split.
    Raises `BadData`.
    """
    if size is not None and size < 1:
        raise BadData(f"data: size must be at least 1 pixel, got {size}")
    found = find(source)
    encoded = [one for part in found.parts.values() if not isinstance(part.images, Tensor) for one in part.images]
    if size is None and mixed is not None and differ(encoded):
        size = mixed
        told = f"the images of {found.source} differ in size and were scaled and cropped to {size} x {size} pixels"
        found = replace(found, notes=(*found.notes, told))
    parts = {name: _decoded(part, found, name, size) for name, part in found.parts.items()}
    images = _arranged(parts, found.classes, found.source, validation, seed, found.notes)
    return images if size is None else images.resized(size)


def from_arrays(
    images: Any,
    labels: Any,
    *,
    classes: Sequence[str] | None = None,
    validation: float | tuple[Any, Any] = 0.2,
    test: tuple[Any, Any] | None = None,
    seed: int = 0,
) -> Images:
    """Images in memory: NumPy arrays or tensors (N, H, W), (N, C, H, W) or, of arrays, (N, H, W, C); whole numbers are bytes.

    `labels`: N whole numbers, places among `classes` if these are given, else any numbers or names. `validation` and `test`:
    pairs of images and labels, or for validation the share to hold out. Raises `BadData`.
    """
    parts = {"train": from_memory(images, labels, "train")}
    if isinstance(validation, tuple):
        parts["validation"] = from_memory(*validation, "validation")
    if test is not None:
        parts["test"] = from_memory(*test, "test")
    share = 0.0 if isinstance(validation, tuple) else validation
    return _arranged(parts, None if classes is None else tuple(classes), "arrays", share, seed)


def from_loader(
    loader: Iterable[Any],
    *,
    classes: Sequence[str] | None = None,
    validation: float | Iterable[Any] = 0.2,
    test: Iterable[Any] | None = None,
    seed: int = 0,
) -> Images:
    """What a torch `DataLoader` yields as (images, labels), read once: random augmentation in it stays as it fell.

    `validation` and `test`: other loaders, or for validation the share to hold out. Otherwise as `from_arrays`.
    """
    share = validation if isinstance(validation, int | float) else read_loader(validation)
    made = from_arrays(
        *read_loader(loader),
        classes=classes,
        validation=share,
        test=None if test is None else read_loader(test),
        seed=seed,
    )
    return replace(made, source="loader", notes=("the loader was read once", *made.notes))


def normalised(batch: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """float32 (B, C, H, W) of mean 0 and deviation 1, from bytes or floats."""
    scale = 255.0 if batch.dtype == torch.uint8 else 1.0
    shift = torch.as_tensor(mean, dtype=torch.float32, device=batch.device).view(-1, 1, 1) * scale
    spread = torch.as_tensor(std, dtype=torch.float32, device=batch.device).view(-1, 1, 1) * scale
    return (batch.float() - shift) / spread


def resized(images: Tensor, side: int) -> Tensor:
    """(N, C, H, W) scaled, with antialiasing, until the shorter side is `side` pixels; bytes stay bytes."""
    height, width = images.shape[-2:]
    scale = side / min(height, width)
    target = (round(height * scale), round(width * scale))
    made = [
        F.interpolate(part.float(), target, mode="bilinear", antialias=True, align_corners=False)
        for part in images.split(_COUNTED)
    ]
    if images.dtype == torch.uint8:
        made = [part.round().clamp(0, 255).to(torch.uint8) for part in made]
    return torch.cat(made)


def _decoded(part: Labelled, found: Found, name: str, size: int | None) -> tuple[Tensor, Sequence[Any]]:
    where = found.source if len(found.parts) == 1 else f"{found.source}, {name}"
    if not len(part.labels):
        raise BadData(f"data: {where} holds no images; give a source with some of each class")
    images = part.images if isinstance(part.images, Tensor) else decode_all(part.images, where, size)
    return images, part.labels


def _arranged(
    parts: dict[str, tuple[Tensor, Sequence[Any]]],
    classes: tuple[str, ...] | None,
    source: str,
    validation: float,
    seed: int,
    notes: tuple[str, ...] = (),
) -> Images:
    """Check, name the classes, hold out what is missing, and measure the training images."""
    named = classes or tuple(str(one) for one in sorted(set(parts["train"][1])))
    known = None if classes else dict.fromkeys(sorted(set(parts["train"][1])))
    places = None if known is None else {label: place for place, label in enumerate(known)}
    splits = _checked({n: _split(*held, named, places, f"{source}, {n}") for n, held in parts.items()}, named, source)
    for name, share, own_seed in (("test", TEST_SHARE, _TEST_SEED), ("validation", validation, seed)):
        if name not in splits:
            if not 0 < share < 1 - TEST_SHARE:
                raise BadData(
                    f"data: the share held out for {name} must lie between 0 and {1 - TEST_SHARE}, got {share}"
                )
            of_rest = share / (1 - TEST_SHARE) if "test" not in parts and name == "validation" else share
            kept, held = _held_out(splits["train"].labels, of_rest, own_seed)
            splits[name], splits["train"] = splits["train"].take(held), splits["train"].take(kept)
            told = f"{share:.0%} of the images ({len(held):,}), the same share of each class, were held out"
            notes += (f"{source} has no {name} split: {told} as one",)
    mean, std = _moments(splits["train"].images)
    return Images(
        train=splits["train"],
        validation=splits["validation"],
        test=Sealed(splits["test"]),
        classes=named,
        mean=mean,
        std=std,
        source=source,
        notes=notes,
    )


def _split(
    images: Tensor, labels: Sequence[Any], classes: tuple[str, ...], places: dict[Any, int] | None, where: str
) -> Split:
    if len(images) != len(labels):
        raise BadData(f"data: {where} has {len(images):,} images but {len(labels):,} labels; give one label an image")
    names = {name: place for place, name in enumerate(classes)} if places is None else places
    whole = places is None and all(isinstance(label, int) for label in labels)
    outside = [label for label in labels if (not 0 <= label < len(classes) if whole else label not in names)]
    if outside:
        shown = ", ".join(f"{label!r}" for label in dict.fromkeys(outside[:5]))
        told = f"from 0 to {len(classes) - 1}" if whole else f"among {', '.join(map(str, list(names)[:10]))}"
        raise BadData(
            f"data: {len(outside):,} labels of {where} lie outside the {len(classes)} classes (such as {shown}); "
            f"expected labels {told}; correct them, or leave those images out"
        )
    return Split(images=images, labels=torch.tensor([label if whole else names[label] for label in labels]))


def _checked(splits: dict[str, Split], classes: tuple[str, ...], source: str) -> dict[str, Split]:
    """The splits, which must agree in channels and size and leave no class empty."""
    counts = Counter(splits["train"].labels.tolist())
    if len(classes) < 2 or len(counts) < 2:
        only = classes[0] if len(classes) == 1 else classes[next(iter(counts))]
        raise BadData(f"data: all images of {source} are of one class, {only!r}; at least two classes are needed")
    if empty := [name for place, name in enumerate(classes) if not counts[place]]:
        raise BadData(
            f"data: {source} has no training image of the class{'es' * (len(empty) > 1)} {', '.join(empty[:10])}; "
            "add some, or leave the class out"
        )
    needed = 3 - ("validation" in splits) - ("test" in splits)
    if scarce := [f"{name} ({counts[place]})" for place, name in enumerate(classes) if counts[place] < needed]:
        raise BadData(
            f"data: {source} must give each class at least {needed} images, because splits are held out of them; "
            f"too few: {', '.join(scarce[:10])}; add images, or give the splits yourself"
        )
    colour = max(split.images.shape[1] for split in splits.values()) == 3
    same = {
        name: replace(s, images=s.images.expand(-1, 3, -1, -1)) if colour and s.images.shape[1] == 1 else s
        for name, s in splits.items()
    }
    if len({(s.images.shape[1:], s.images.dtype) for s in same.values()}) > 1:
        shown = "; ".join(f"{n}: {tuple(s.images.shape[1:])} {s.images.dtype}" for n, s in same.items())
        raise BadData(f"data: the splits of {source} differ in channels, size or number format ({shown}); pass size=…")
    return same


def _held_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places that stay and places held out: of each class `share`, rounded, but at least one either way."""
    rng, kept, held = random.Random(seed), list[int](), list[int]()
    for label in range(int(labels.max()) + 1):
        places = (labels == label).nonzero().flatten().tolist()
        rng.shuffle(places)
        count = min(max(1, round(share * len(places))), len(places) - 1)
        held += places[:count]
        kept += places[count:]
    return torch.tensor(sorted(kept)), torch.tensor(sorted(held))


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of bytes in 0..1."""
    total = squares = torch.zeros(images.shape[1], dtype=torch.float64)
    for part in images.split(_COUNTED):
        scaled = part.double() / (255.0 if images.dtype == torch.uint8 else 1.0)
        total, squares = total + scaled.sum((0, 2, 3)), squares + scaled.square().sum((0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=_LEAST_SPREAD)
    return tuple(mean.tolist()), tuple(std.tolist())


def _hash(*tensors: Tensor) -> bytes:
    state = hashlib.sha256()
    for tensor in tensors:
        state.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        state.update(tensor.contiguous().numpy().data)
    return state.digest()
