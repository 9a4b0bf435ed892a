"""Predictions: any form of a picture gives what the network computes from its pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from befit.arch.space import Choice, Space
from befit.arch.task import ImageTask
from befit.errors import BadData
from befit.vision.data import from_arrays, load_images
from befit.vision.predict import Classifier, Prediction
from befit.vision.training import TrainConfig, train

ARCH = Space({"width": Choice(4)}).arch({"width": 4})


class Brightness(nn.Module):
    """Logits are the mean of each channel, as it was before normalisation, times 10."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))
        self.seen = list[tuple[int, ...]]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return (x.mean((2, 3)) * self.std + self.mean) * 10


def brightest(span: tuple[float, float] = (0.0, 1.0)) -> Classifier:
    """Tells which channel of an 8x8 colour image is brightest."""
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    task = ImageTask(channels=3, height=8, width=8, classes=3)
    return Classifier(
        module=Brightness(mean, std),
        task=task,
        classes=("red", "green", "blue"),
        mean=mean,
        std=std,
        span=span,
        arch=ARCH,
        blueprint="x:y",
    )


def check(found: Prediction, means: tuple[float, float, float]) -> None:
    logits = 10 * np.array(means)
    truth = np.exp(logits) / np.exp(logits).sum()
    assert list(found.probabilities) == ["red", "green", "blue"]
    assert list(found.probabilities.values()) == pytest.approx(truth, abs=1e-4)
    assert found.label == list(found.probabilities)[int(truth.argmax())] and found.probability == pytest.approx(
        truth.max(), abs=1e-4
    )


def test_every_form_of_a_picture(tmp_path: Path) -> None:
    network = brightest()
    picture = Image.new("RGB", (8, 8), (51, 102, 0))
    file = tmp_path / "a.png"
    picture.save(file)
    pixels = np.asarray(picture)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    forms = [picture, file, str(file), pixels, pixels.transpose(2, 0, 1), pixels / 255, tensor, tensor / 255]
    for form in forms:
        check(network.predict(form), (0.2, 0.4, 0))
    assert [one.label for one in network.predict(forms)] == ["green"] * 8
    assert network.predict([]) == []
    assert network.predict(file).image == str(file) and network.predict([pixels] * 2)[1].image == "1"


def test_size_mode_and_orientation_are_made_to_fit(tmp_path: Path) -> None:
    network = brightest()
    wide = Image.new("RGB", (60, 30), (255, 0, 0))
    wide.paste((0, 255, 0), (15, 0, 45, 30))  # the middle square
    for form in (wide, np.asarray(wide), torch.from_numpy(np.array(wide)).permute(2, 0, 1) / 255):
        assert network.predict(form).probabilities["green"] > 0.95
    check(network.predict(Image.new("L", (9, 9), 51)), (0.2, 0.2, 0.2))
    check(network.predict(np.full((8, 8), 51, dtype=np.uint8)), (0.2, 0.2, 0.2))
    check(network.predict(Image.new("RGBA", (8, 8), (51, 0, 102, 7))), (0.2, 0, 0.4))
    exif = Image.Exif()
    exif[0x0112] = 6
    tall = Image.new("RGB", (40, 20), (0, 0, 255))
    tall.save(tmp_path / "turned.jpg", exif=exif)
    assert network.predict(tmp_path / "turned.jpg").label == "blue"
    assert set(network.module.seen) == {(1, 3, 8, 8)}  # type: ignore[arg-type]


def test_a_folder_is_predicted_file_by_file(tmp_path: Path) -> None:
    for place in range(70):
        Image.new("RGB", (8, 8), (255 * (place % 2), 0, 128)).save(tmp_path / f"{place:02}.png")
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (8, 8), (0, 255, 0)).save(tmp_path / "deep" / "z.jpg")
    (tmp_path / "readme.txt").write_text("no image")
    found = brightest().predict(tmp_path)
    assert [one.label for one in found] == ["blue", "red"] * 35 + ["green"]
    assert found[-1].image == str(tmp_path / "deep" / "z.jpg")


def test_training_images_predict_as_in_training() -> None:
    data = load_images()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    found = train(model, data, TrainConfig(epochs=5))
    network = Classifier.of(model, data, ARCH, blueprint="x:y")
    pictures = [Image.fromarray(image[0].numpy()) for image in data.validation.images]
    own = [one.label for one in network.predict(pictures)]
    truth = [data.classes[label] for label in data.validation.labels.tolist()]
    assert np.mean([a == b for a, b in zip(own, truth, strict=True)]) == pytest.approx(found.accuracy, abs=0.003)


def test_numbers_that_are_no_pictures_want_numbers() -> None:
    images = torch.randn(20, 1, 6, 6) * 3
    data = from_arrays(images, [0, 1] * 10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    network = Classifier.of(model, data, ARCH, blueprint="x:y")
    low, high = data.train.images.min().item(), data.train.images.max().item()
    assert network.span == (low, high) and low < -1 < 1 < high
    expected = model(data.normalised(images[:1])).softmax(1)[0].tolist()
    assert list(network.predict(images[0]).probabilities.values()) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(
        BadData, match=r"trained on numbers from -\d.* not known; give a tensor prepared like the training"
    ):
        network.predict(Image.new("L", (6, 6)))


def test_what_cannot_be_predicted(tmp_path: Path) -> None:
    network = brightest()
    with pytest.raises(BadData, match=r"no file or folder 'none\.png'; give an image or a folder"):
        network.predict("none.png")
    with pytest.raises(BadData, match=r"the folder .* holds no images"):
        network.predict(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"x")
    with pytest.raises(BadData, match=r"broken\.png cannot be read as an image"):
        network.predict(tmp_path)
    with pytest.raises(BadData, match=r"values from 0 to 16; expected floats in 0\.\.1 or bytes"):
        network.predict(torch.linspace(0, 16, 192).view(3, 8, 8))
    with pytest.raises(BadData, match=r"has 5 channels; expected 1 \(grey\) or 3 \(colour\)"):
        network.predict(torch.zeros(5, 8, 8))
    with pytest.raises(BadData, match=r"shape \(1, 2, 3, 8, 8\)"):
        network.predict(torch.zeros(2, 3, 8, 8))


def test_a_classifier_must_be_whole() -> None:
    with pytest.raises(BadData, match="2 names for 3 classes"):
        Classifier(**{**vars(brightest()), "classes": ("a", "b")})
    with pytest.raises(BadData, match="mean and std need 3 numbers each"):
        Classifier(**{**vars(brightest()), "mean": (0.0,)})
