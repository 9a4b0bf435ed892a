"""Where labelled images come from: the embedded digits, class folders, parquet files, data sets of the Hugging Face hub.

Each reader returns what it found, undecoded and unsplit; `data.py` makes of it what networks are trained on.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from befit.errors import BadData
from befit.vision.pixels import SUFFIXES, Encoded

PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)
"""What folders, files and splits are called, and which part of the data they are."""

EXPECTED = (
    "expected a folder with one folder of images for each class (also below train/, validation/ and test/), a parquet file "
    "or a folder with train.parquet, a data set of the hub as OWNER/NAME[:CONFIG], or nothing for scikit-learn's digits"
)
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_NO_LABEL = -1


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images of one part of a source."""

    images: Tensor | Sequence[Encoded]
    """uint8 (N, C, H, W), or files to decode."""
    labels: Sequence[Any]
    """N labels as the source has them: places among its classes, or names."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a source holds."""

    source: str
    """As messages name it."""
    parts: Mapping[str, Labelled]
    """`train`, perhaps `validation` and `test`."""
    classes: tuple[str, ...] | None
    """Names by label; None if the labels themselves are all there is."""
    notes: tuple[str, ...] = ()
    """What a reader of results should know."""


def find(source: str | None) -> Found:
    """What `source` (see `EXPECTED`) holds. Raises `BadData` saying what was given, expected and to do."""
    if source is None or source == "digits":
        return digits()
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix != ".parquet":
            raise BadData(f"data: {source} is no parquet file; {EXPECTED}")
        return _parquet({"train": [path]}, source)
    if path.is_dir():
        return _folder(path, source)
    if _HUB_NAME.fullmatch(source):
        return _hub(source)
    raise BadData(f"data: there is no file or folder {source!r}; {EXPECTED}")


def digits() -> Found:
    """scikit-learn's 1,797 handwritten digits, 8x8 pixels of 17 greys, which become 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BadData("data: the embedded digits are scikit-learn's; `pip install befit[search]` brings it") from error
    held = load_digits()
    images = (torch.from_numpy(held.images)[:, None] * (255 / 16)).round().to(torch.uint8)  # pyright: ignore
    return Found(
        source="digits",
        parts={"train": Labelled(images=images, labels=held.target.tolist())},  # pyright: ignore
        classes=tuple(map(str, held.target_names)),  # pyright: ignore
    )


def _folder(path: Path, source: str) -> Found:
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        return _saved(path, source)
    if tables := sorted(path.rglob("*.parquet")):
        parts = dict[str, list[Path]]()
        for table in tables:
            name = re.split(r"[-_.]", table.name.lower(), maxsplit=1)[0]
            parts.setdefault(PARTS.get(name, "train"), []).append(table)
        return _parquet(parts, source)
    below = {PARTS.get(one.name.lower()): one for one in _folders(path)}
    if "train" not in below:
        classes, found = _class_folders(path, None)
        return Found(source=source, parts={"train": found}, classes=classes)
    classes, train = _class_folders(below["train"], None)
    parts = {name: _class_folders(one, classes)[1] for name, one in below.items() if name not in (None, "train")}
    ignored = [one.name for one in _folders(path) if one not in below.values() or below.get(None) == one]
    notes = (f"folders beside train/ that were not read: {', '.join(ignored)}",) if ignored else ()
    return Found(source=source, parts={"train": train, **parts}, classes=classes, notes=notes)


def _class_folders(path: Path, classes: tuple[str, ...] | None) -> tuple[tuple[str, ...], Labelled]:
    """A folder of class folders; of these `classes` if given, else each must hold an image."""
    folders = _folders(path)
    if not folders:
        loose = sum(1 for one in path.iterdir() if one.suffix.lower() in SUFFIXES)
        what = f"{loose:,} images but no folders of classes" if loose else "neither folders nor images"
        raise BadData(f"data: {path} holds {what}; {EXPECTED}")
    names = tuple(folder.name for folder in folders)
    files = {folder.name: _images_below(folder) for folder in folders}
    if classes is None and (empty := [name for name in names if not files[name]]):
        every = " (it holds no images at all)" if len(empty) == len(names) else ""
        raise BadData(
            f"data: no image in the class folder{'s' * (len(empty) > 1)} {', '.join(empty[:10])} of {path}{every}; "
            f"put images there ({', '.join(SUFFIXES[:4])}, …), or remove the folder"
        )
    if classes is not None and (strange := sorted(set(names) - set(classes))):
        raise BadData(
            f"data: {path} has the class folder{'s' * (len(strange) > 1)} {', '.join(strange[:10])}, which the training "
            f"images do not have ({', '.join(classes[:10])}); make the folders' names the same"
        )
    known = names if classes is None else classes
    pairs = [(file, known.index(name)) for name in names for file in files[name]]
    images = [Encoded(name=str(file), content=file) for file, _ in pairs]
    return known, Labelled(images=images, labels=[label for _, label in pairs])


def _folders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir() and not one.name.startswith((".", "__")))


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        one
        for one in folder.rglob("*")
        if one.suffix.lower() in SUFFIXES and not one.name.startswith(".") and one.is_file()
    )


def _parquet(parts: Mapping[str, Sequence[Path]], source: str) -> Found:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found, classes, notes = dict[str, Labelled](), None, ()
    for part, files in sorted(parts.items(), key=lambda item: item[0] != "train"):
        rows, labels = list[Encoded](), list[Any]()
        for file in files:
            try:
                table = pq.read_table(file)
            except (pa.ArrowException, OSError) as error:
                raise BadData(f"data: {file} cannot be read as parquet ({error}); copy it again") from error
            told = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {})
            types = {name: kind for name, kind in told.get("features", {}).items() if isinstance(kind, dict)}
            images, column, note = _columns({name: types.get(name, {}) for name in table.column_names}, str(file))
            rows += _encoded(table.column(images).to_pylist(), str(file), file.parent)
            labels += table.column(column).to_pylist()
            classes, notes = classes or _names(types.get(column, {})), note
        found[part] = Labelled(images=rows, labels=labels)
    return Found(source=source, parts=_with_labels(found), classes=classes, notes=notes)


def _hub(source: str) -> Found:
    """A data set of the hub, or one that `datasets` finds in its cache."""
    import datasets

    name, config = [*source.split(":"), None][:2]
    try:
        loaded = datasets.load_dataset(str(name), config)
    except (OSError, ValueError, RuntimeError) as error:
        raise BadData(
            f"data: there is no file or folder {source!r}, and no data set of that name can be fetched from the Hugging Face "
            f"hub ({type(error).__name__}: {str(error).splitlines()[0]}); check the name and the network, or {EXPECTED}"
        ) from error
    return _datasets(loaded, source)


def _saved(path: Path, source: str) -> Found:
    """What `save_to_disk` of `datasets` wrote."""
    import datasets

    try:
        return _datasets(datasets.load_from_disk(str(path)), source)
    except (OSError, ValueError) as error:
        if isinstance(error, BadData):
            raise
        raise BadData(f"data: {source} cannot be read by datasets ({error}); save it again") from error


def _datasets(loaded: Any, source: str) -> Found:
    """One data set of the library `datasets`, or a dictionary of its splits."""
    import datasets

    splits = loaded if isinstance(loaded, dict) else {"train": loaded}
    parts = {PARTS[name.lower()]: split for name, split in splits.items() if name.lower() in PARTS}
    if "train" not in parts:
        raise BadData(f"data: {source} has the splits {', '.join(splits)}, none of them for training; {EXPECTED}")
    features = parts["train"].features
    types = {name: {"_type": type(kind).__name__} for name, kind in features.items()}
    images, column, notes = _columns(types, source)
    named = features[column]
    classes = tuple(named.names) if isinstance(named, datasets.ClassLabel) else None
    found = dict[str, Labelled]()
    for part, split in parts.items():
        undecoded = split.cast_column(images, datasets.Image(decode=False))
        where = f"{source}, {part}"
        found[part] = Labelled(images=_encoded(undecoded[images], where, Path()), labels=list(split[column]))
    return Found(source=source, parts=_with_labels(found), classes=classes, notes=notes)


def _columns(types: Mapping[str, Mapping[str, Any]], where: str) -> tuple[str, str, tuple[str, ...]]:
    """The column of images, that of labels, and a note where there was a choice; by type, else by usual names."""
    expected = "expected a column 'image' (bytes) and a column 'label'; rename them"
    images = [name for name, kind in types.items() if kind.get("_type") == "Image"]
    images = images or [name for name in ("image", "img", "images") if name in types]
    labels = [name for name, kind in types.items() if kind.get("_type") == "ClassLabel"]
    labels = ["label"] if "label" in types else labels or [n for n in ("labels", "class", "target") if n in types]
    if not images or not labels:
        raise BadData(f"data: {where} has the columns {', '.join(types)}; {expected}")
    others = labels[1:] + images[1:]
    note = (f"read the columns {images[0]} and {labels[0]}, not {', '.join(others)}",) if others else ()
    return images[0], labels[0], note


def _names(kind: Mapping[str, Any]) -> tuple[str, ...] | None:
    return tuple(kind["names"]) if "names" in kind else None


def _encoded(cells: Any, where: str, folder: Path) -> list[Encoded]:
    """Images as the Hugging Face Image feature keeps them (bytes or a path), or bare bytes."""
    found = list[Encoded]()
    for row, cell in enumerate(cells):
        held = cell if isinstance(cell, Mapping) else {"bytes": cell}
        content, path = held.get("bytes"), held.get("path")
        if not isinstance(content, bytes) and not path:
            raise BadData(f"data: {where}, row {row}: no image there (neither bytes nor a path); remove the row")
        found.append(
            Encoded(name=f"{where}, row {row}", content=content if isinstance(content, bytes) else folder / str(path))
        )
    return found


def _with_labels(parts: Mapping[str, Labelled]) -> dict[str, Labelled]:
    """Without parts whose labels are kept secret: hub data sets of competitions have -1 there."""
    return {
        name: part for name, part in parts.items() if name == "train" or any(one != _NO_LABEL for one in part.labels)
    }
