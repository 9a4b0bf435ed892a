"""Images from every kind of source, against scikit-learn's arrays and files that Pillow and pyarrow wrote here."""

import io
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from befit.errors import BadData
from befit.vision.data import Images, from_arrays, from_loader, load_images, resized


def colours(path: Path, count: int, colour: tuple[int, int, int], side: int = 8) -> None:
    """`count` images of one colour, and each a little different."""
    path.mkdir(parents=True)
    for place in range(count):
        Image.new("RGB", (side, side), (colour[0], colour[1], place)).save(path / f"{place}.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two class folders of ten images: reds and greens."""
    colours(tmp_path / "photos" / "red", 10, (250, 0, 0))
    colours(tmp_path / "photos" / "green", 10, (0, 250, 0))
    (tmp_path / "photos" / "red" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def counts(labels: torch.Tensor) -> list[int]:
    return torch.bincount(labels).tolist()


def everything(data: Images) -> tuple[torch.Tensor, torch.Tensor]:
    splits = (data.train, data.validation, data.test.open())
    return torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits])


def test_digits_are_scikit_learns_in_a_fixed_split() -> None:
    pixels, digits = load_digits(return_X_y=True)
    data = load_images()
    assert (len(data.train), len(data.validation), len(data.test)) == (1079, 359, 359)
    assert data.task.to_json() == {"channels": 1, "height": 8, "width": 8, "classes": 10}
    assert data.train.images.dtype == torch.uint8
    images, labels = everything(data)
    # Each image is in one split, with its own label: the multiset of (pixels, label) is scikit-learn's.
    back = (images.double() * 16 / 255).round().flatten(1).long().tolist()
    found = sorted((*pixels, label) for pixels, label in zip(back, labels.tolist(), strict=True))
    truth = sorted((*map(int, p), int(y)) for p, y in zip(pixels, digits, strict=True))
    assert found == truth
    for split in (data.train, data.validation):
        for have, of in zip(counts(split.labels), counts(labels), strict=True):
            assert abs(have / of - len(split) / 1797) < 0.01
    again, other = load_images("digits"), load_images(seed=1)
    assert data.fingerprint == again.fingerprint != other.fingerprint
    assert not torch.equal(data.validation.images, other.validation.images)
    assert torch.equal(again.test.open().images, other.test.open().images), "the test split does not follow the seed"
    assert len(data.notes) == 2 and "no test split" in data.notes[0] and "359" in data.notes[0]


def test_normalisation_is_that_of_the_training_split() -> None:
    data = load_images()
    normal = data.normalised(data.train.images).double()
    assert abs(normal.mean().item()) < 1e-5 and abs(normal.std(correction=0).item() - 1) < 1e-5
    assert abs(data.normalised(data.validation.images).mean().item()) > 1e-5
    assert data.mean == pytest.approx([data.train.images.double().mean().item() / 255])


def test_the_test_split_opens_once_at_any_resolution() -> None:
    data = load_images()
    small = data.resized(4)
    assert small.task.height == 4 and len(small.test) == len(data.test) and not data.test.opened
    assert small.test.open().images.shape == (359, 1, 4, 4)
    assert data.test.opened
    with pytest.raises(RuntimeError, match="has been opened before"):
        data.test.open()


def test_a_subset_has_the_share_of_every_class() -> None:
    data = load_images()
    part = data.subset(0.25, seed=3)
    for have, of in zip(counts(part.train.labels), counts(data.train.labels), strict=True):
        assert abs(have - of / 4) <= 1
    assert torch.equal(part.validation.images, data.validation.images) and part.mean == data.mean
    assert part.fingerprint != data.fingerprint == data.subset(1).fingerprint
    assert torch.equal(part.train.images, data.subset(0.25, seed=3).train.images)
    assert not torch.equal(part.train.images, data.subset(0.25, seed=4).train.images)
    with pytest.raises(BadData, match="share must be above 0 and at most 1, got 2"):
        data.subset(2)


def test_resizing_is_antialiased_and_keeps_proportions() -> None:
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(4)[None, None, None].expand(1, 1, 16, 8)
    made = resized(stripes, 4)
    assert made.shape == (1, 1, 8, 4) and made.dtype == torch.uint8
    assert (made.float() - 127.5).abs().max() < 40, "stripes of one pixel average out"


def test_class_folders(photos: Path) -> None:
    data = load_images(str(photos))
    assert data.classes == ("green", "red") and data.task.channels == 3
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    images, labels = everything(data)
    assert torch.equal(images[:, 0, 0, 0] == 250, labels == 1) and torch.equal(images[:, 1, 0, 0] == 250, labels == 0)
    assert sorted(images[labels == 1][:, 2, 0, 0].tolist()) == list(range(10))


def test_folders_of_splits(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        for place, name in enumerate(("a", "b")):
            colours(tmp_path / part / name, count, (100 * place, 0, 0))
    (tmp_path / "raw").mkdir()
    data = load_images(str(tmp_path))
    assert (len(data.train), len(data.validation), len(data.test)) == (10, 4, 6)
    assert data.notes == ("folders beside train/ that were not read: raw",)


def test_mixed_sizes_need_a_size_and_then_are_cropped_in_the_middle(photos: Path) -> None:
    wide = Image.new("RGB", (80, 40), (250, 0, 0))
    wide.paste((0, 0, 250), (0, 0, 20, 40))
    wide.paste((0, 0, 250), (60, 0, 80, 40))
    wide.save(photos / "red" / "wide.png")
    with pytest.raises(BadData, match=r"2 different sizes .*8x8, 80x40; pass size=8"):
        load_images(str(photos))
    usual = load_images(str(photos), mixed=16)
    assert any("differ in size" in note for note in usual.notes)
    data = load_images(str(photos), size=16)
    assert torch.equal(usual.train.images, data.train.images)
    images, labels = everything(data)
    assert images.shape == (21, 3, 16, 16)
    # The blue edges of the wide image are cut away: what is left is as red as the others, but for the seam.
    assert (images[labels == 1][:, 2, :, 1:-1] < 20).all()


def test_pictures_are_turned_upright_and_reduced_to_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    lying = Image.new("L", (4, 4), 0)
    lying.paste(255, (0, 0, 4, 1))  # the stored top row is bright; orientation 6 makes it the right column
    exif = Image.Exif()
    exif[0x0112] = 6
    for place in range(4):
        lying.save(folder / f"{place}.png", exif=exif)
    (tmp_path / "y").mkdir()
    deep = np.full((4, 4), 0x8000, dtype=np.uint16)
    for place in range(4):
        Image.fromarray(deep).save(tmp_path / "y" / f"{place}.png")
    images, labels = everything(load_images(str(tmp_path)))
    assert images.shape[1:] == (1, 4, 4)
    assert images[labels == 0][0, 0].tolist() == [[0, 0, 0, 255]] * 4
    assert (images[labels == 1] == 0x80).all()


def test_grey_becomes_colour_among_colours(photos: Path) -> None:
    Image.new("L", (8, 8), 77).save(photos / "red" / "grey.png")
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([9, 8, 7] * 256)
    palette.info["transparency"] = b"\x00\x80"
    palette.save(photos / "red" / "palette.png")
    images, _ = everything(load_images(str(photos)))
    assert sum((image == 77).all().item() for image in images) == 1
    assert sum((image[:, 0, 0].tolist() == [9, 8, 7]) for image in images) == 1


@pytest.mark.parametrize(
    ("break_", "message"),
    [
        (lambda p: (p / "blue").mkdir(), r"no image in the class folder blue of .*photos; put images there"),
        (
            lambda p: (p / "red/0.png").write_bytes(b"no"),
            r"1 of 20 images of .* cannot be read: .*red/0.png \(no image",
        ),
        (lambda p: (p / "red/1.png").write_bytes((p / "red/1.png").read_bytes()[:45]), r"red/1.png \(.*\); remove or"),
        (lambda p: (p / "red").rename(p.parent / "away"), r"all images of .* are of one class, 'green'"),
        (lambda p: colours(p / "few", 2, (1, 1, 1)), r"at least 3 images, .*too few: few \(2\)"),
        (lambda p: (p / "train").mkdir(), r"holds neither folders nor images; expected a folder with one folder"),
    ],
)
def test_what_is_wrong_with_folders(photos: Path, break_, message: str) -> None:
    break_(photos)
    with pytest.raises(BadData, match=message):
        load_images(str(photos))


def test_no_images_and_no_such_thing(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="holds neither folders nor images"):
        load_images(str(tmp_path))
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(BadData, match="holds 1 images but no folders of classes"):
        load_images(str(tmp_path))
    with pytest.raises(BadData, match="no file or folder '/no/such'; expected a folder"):
        load_images("/no/such")
    with pytest.raises(BadData, match=r"one.png is no parquet file"):
        load_images(str(tmp_path / "one.png"))
    with pytest.raises(BadData, match="size must be at least 1 pixel, got 0"):
        load_images(size=0)
    with pytest.raises(BadData, match=r"share held out for validation must lie between 0 and 0\.8, got 1"):
        load_images(validation=1)


def test_a_strange_class_in_the_test_folder(tmp_path: Path) -> None:
    for part, name in (("train", "a"), ("train", "b"), ("test", "a"), ("test", "c")):
        colours(tmp_path / part / name, 3, (0, 0, 0))
    with pytest.raises(BadData, match=r"test has the class folder c, which the training images do not have \(a, b\)"):
        load_images(str(tmp_path))


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (6, 6), value).save(file, "PNG")
    return file.getvalue()


def table(path: Path, labels: list[int], names: list[str] | None = None, column: str = "image") -> None:
    """As Hugging Face `datasets` writes images: each has the grey value 10 x label + its place."""
    images = [{"bytes": png(10 * label + place), "path": None} for place, label in enumerate(labels)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    made = pa.table({column: pa.array(images, kind), "label": pa.array(labels, pa.int64())})
    if names is not None:
        told = {column: {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": told}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path)


def test_parquet_with_names_of_classes(tmp_path: Path) -> None:
    table(tmp_path / "data" / "train-00000-of-00002.parquet", [0, 1, 0, 1], ["cat", "dog"], column="img")
    table(tmp_path / "data" / "train-00001-of-00002.parquet", [0, 1], ["cat", "dog"], column="img")
    table(tmp_path / "data" / "validation-00000-of-00001.parquet", [1, 0, 1], ["cat", "dog"], column="img")
    table(tmp_path / "data" / "test-00000-of-00001.parquet", [1, 1], ["cat", "dog"], column="img")
    data = load_images(str(tmp_path))
    assert data.classes == ("cat", "dog") and data.notes == ()
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.train.images[:, 0, 0, 0].tolist() == [0, 11, 2, 13, 0, 11]
    assert data.validation.images[:, 0, 0, 0].tolist() == [10, 1, 12] and data.test.open().labels.tolist() == [1, 1]


def test_parquet_without_names_and_with_a_wrong_label(tmp_path: Path) -> None:
    table(tmp_path / "some.parquet", [3, 7] * 4)
    data = load_images(str(tmp_path / "some.parquet"))
    assert data.classes == ("3", "7") and sorted(set(data.train.labels.tolist())) == [0, 1]
    table(tmp_path / "some.parquet", [0, 1, 2, 1, 0, 1, 0], ["cat", "dog"])
    with pytest.raises(
        BadData, match=r"1 labels of .* lie outside the 2 classes \(such as 2\); expected labels from 0 to 1"
    ):
        load_images(str(tmp_path / "some.parquet"))
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "some.parquet")
    with pytest.raises(
        BadData, match=r"has the columns text; expected a column 'image' \(bytes\) and a column 'label'"
    ):
        load_images(str(tmp_path / "some.parquet"))
    (tmp_path / "some.parquet").write_bytes(b"PAR1")
    with pytest.raises(BadData, match="cannot be read as parquet"):
        load_images(str(tmp_path / "some.parquet"))


def test_a_saved_data_set_and_one_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "fine": datasets.ClassLabel(names=["x", "y"]), "coarse": datasets.ClassLabel(3)}
    )
    rows = [{"bytes": png(10 * (place % 2)), "path": None} for place in range(8)]
    train = datasets.Dataset.from_dict({"image": rows, "fine": [0, 1] * 4, "coarse": [2] * 8}, features=features)
    secret = datasets.Dataset.from_dict({"image": rows[:2], "fine": [-1, -1], "coarse": [0, 0]}, features=features)
    both = datasets.DatasetDict({"train": train, "valid": train, "test": secret})
    both.save_to_disk(str(tmp_path / "saved"), num_proc=None)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: both)
    for data in (load_images(str(tmp_path / "saved")), load_images("owner/name:plain")):
        assert data.classes == ("x", "y") and len(data.validation) == 8
        assert data.notes[0] == "read the columns image and fine, not coarse"
        assert "no test split" in data.notes[1], "labels of -1 are no labels"
        assert torch.equal(data.train.images[:, 0, 0, 0], 10 * data.train.labels)


def test_the_hub_without_a_network() -> None:
    with pytest.raises(
        BadData, match=r"no data set of that name can be fetched from the Hugging Face hub .*check the name"
    ):
        load_images("nobody/nothing")


def test_arrays_of_every_layout_agree() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
    labels = np.array(["b", "a"] * 6)
    last = from_arrays(pixels, labels)
    first = from_arrays(torch.from_numpy(pixels).permute(0, 3, 1, 2), labels.tolist())
    wide = from_arrays(pixels.astype(np.int64), list(np.array([1, 0] * 6)), classes=("a", "b"))
    assert last.classes == ("a", "b") and last.task.to_json() == {"channels": 3, "height": 6, "width": 5, "classes": 2}
    assert last.fingerprint == first.fingerprint == wide.fingerprint
    assert from_arrays(pixels[..., 0], labels).task.channels == 1
    assert from_arrays(pixels[..., 0] > 9, labels).train.images.unique().tolist() == [0, 255]
    floats = from_arrays(pixels / 10.0, labels, validation=(pixels / 10, labels), test=(pixels / 10, labels))
    assert floats.train.images.dtype == torch.float32 and len(floats.train) == 12 and not floats.notes
    assert floats.normalised(floats.train.images).std(dim=(0, 2, 3), correction=0) == pytest.approx([1, 1, 1], abs=1e-4)


def test_a_copy_is_taken() -> None:
    pixels = np.zeros((12, 4, 4), dtype=np.uint8)
    data = from_arrays(pixels, [0, 1] * 6)
    pixels[:] = 9
    assert not data.train.images.any()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 8, 8)), [0, 1, 0], r"4 images but 3 labels"),
        (np.zeros((6, 8)), [0, 1] * 3, r"shape \(6, 8\); expected \(N, H, W\)"),
        (np.full((6, 8, 8), math.nan), [0, 1] * 3, "no finite numbers"),
        (np.full((6, 8, 8), 300), [0, 1] * 3, "whole numbers from 300 to 300, but bytes go from 0 to 255"),
        (np.array([["a"]]), [0], "no array of numbers"),
        (np.zeros((6, 8, 8)), [0, 5] * 3, r"3 labels .* outside the 3 classes \(such as 5\)"),
        (np.zeros((6, 8, 8)), [0, 1] * 3, r"no training image of the class c; add some"),
        (np.zeros((6, 8, 8)), [0] * 6, "one class, 'a'"),
    ],
)
def test_what_is_wrong_with_arrays(images: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(BadData, match=message):
        from_arrays(images, labels, classes=("a", "b", "c"))


def test_splits_must_agree() -> None:
    with pytest.raises(BadData, match=r"splits of arrays differ in channels, size or number format .*\(1, 6, 6\)"):
        from_arrays(np.zeros((6, 8, 8)), [0, 1] * 3, test=(np.zeros((2, 6, 6)), [0, 1]))


def test_a_loader_is_read_once() -> None:
    images, labels = torch.rand(20, 3, 8, 8), torch.arange(20) % 2
    loader = DataLoader(TensorDataset(images, labels), batch_size=7)
    data = from_loader(loader, validation=loader, test=loader, classes=("even", "odd"))
    assert torch.equal(data.train.images, images) and torch.equal(data.validation.labels, labels)
    assert data.classes == ("even", "odd") and data.notes == ("the loader was read once",)
    assert len(from_loader(loader).validation) == 4
    with pytest.raises(BadData, match=r"the loader yields Tensor; a loader must yield pairs"):
        from_loader(DataLoader(images))  # type: ignore[arg-type]
    with pytest.raises(BadData, match=r"the loader yields nothing"):
        from_loader([])
