"""Training in the sandbox and scoring outside: the same network as befit's own training, reasons, and weights that load."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from befit.errors import TrialFailed
from befit.propose.judge import Training, commonest, guessing, judge, judge_best
from befit.propose.network import PRM
from befit.propose.sandbox.box import Sandbox
from befit.vision.data import Images, from_arrays
from befit.vision.training import TrainConfig, accuracy, train

SOURCE = """
from torch import nn
class Net(nn.Module):
    def __init__(self, in_shape, out_shape, prm, device):
        super().__init__()
        _, channels, height, width = in_shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
            nn.Dropout(prm["dropout"]), nn.Linear(4 * height * width, out_shape[0]))
    def forward(self, x):
        return self.body(x)
"""
RECIPE = """
    def train_setup(self, prm):
        self.optimizer = torch.optim.SGD(self.parameters(), lr=prm["lr"], momentum=prm["mass"])
        self.criteria = (nn.CrossEntropyLoss(),)
    def learn(self, train_data):
        assert self.training and len(train_data) == sum(1 for _ in train_data)
        for images, labels in train_data:
            self.optimizer.zero_grad()
            self.criteria[0](self(images), labels).backward()
            self.optimizer.step()
def supported_hyperparameters():
    return {"lr", "mass", "dropout"}
"""
TRAINING = Training(config=TrainConfig(epochs=3, batch=32), seconds=60)


@pytest.fixture(scope="module")
def images() -> Images:
    """Two classes that differ in where the light is; one is three times as frequent."""
    drawn = np.random.default_rng(0)
    labels = (drawn.random(400) < 0.25).astype(int)
    pixels = drawn.integers(0, 150, (400, 1, 8, 8))
    pixels[np.arange(400), 0, np.where(labels, 1, 6)] += 60
    return from_arrays(pixels.astype("uint8"), labels)


def test_the_sandbox_trains_as_befit_does(sandbox: Sandbox, images: Images) -> None:
    """The same seed, so the same network, trained here by the ordinary call."""
    found = judge(sandbox, SOURCE, images, TRAINING, seed=3)
    assert not found.reason, found.said
    torch.manual_seed(3)
    alone = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
        *(nn.Dropout(PRM["dropout"]), nn.Linear(256, 2)),
    )
    expected = train(alone, images, TRAINING.config, seed=3)
    assert found.accuracy == pytest.approx(expected.accuracy, abs=1e-12) and expected.accuracy > 0.9
    assert judge(sandbox, SOURCE, images, TRAINING, seed=3).accuracy == found.accuracy


def test_guessing_is_the_commonest_class_and_luck(images: Images) -> None:
    labels = torch.tensor([1] * 75 + [0] * 25)
    assert commonest(labels) == 0.75
    assert guessing(labels) == pytest.approx(0.75 + 2 * (0.75 * 0.25 / 100) ** 0.5)


def test_the_files_own_training(sandbox: Sandbox, images: Images) -> None:
    own = replace(TRAINING, recipe=True, prm={**PRM, "lr": 0.05})
    found = judge(sandbox, "import torch" + SOURCE + RECIPE, images, own, seed=0)
    assert found.accuracy is not None and found.accuracy > 0.9, found
    wild = replace(own, prm={**PRM, "lr": 1e30})
    assert judge(sandbox, "import torch" + SOURCE + RECIPE, images, wild, seed=0).reason == "nan"


@pytest.mark.parametrize("recipe", [False, True])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nn.Flatten(),", "nn.Unflatten(1, (1, 4)), nn.Flatten(),"),
        ("return self.body(x)", "return self.body[4:](self.body[:3](x.view(x.shape)).view(len(x), -1))"),
        ("return self.body(x)", "return self.body(x.view(len(x), -1).view(x.shape))"),
        ("nn.Conv2d(channels, 4,", "nn.LazyConv2d(4,"),
        ("nn.Linear(4 * height * width,", "nn.LazyLinear("),
    ],
)
def test_how_networks_are_often_written(sandbox: Sandbox, old: str, new: str, recipe: bool) -> None:
    """What runs with tensors of the usual layout, or finds its sizes in the first batch, can be trained."""
    drawn = np.random.default_rng(0)
    colours = from_arrays(drawn.integers(0, 255, (64, 3, 8, 8)).astype("uint8"), np.arange(64) % 2)
    assert old in SOURCE
    source = "import torch" + SOURCE.replace(old, new) + RECIPE
    found = judge(sandbox, source, colours, replace(TRAINING, recipe=recipe, prm={**PRM, "lr": 0.01}), seed=0)
    assert found.accuracy is not None, found.said


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("return self.body(x)", "return self.body(x) * float('nan')", "nan"),
        ("return self.body(x)", "return self.body(x) if self.training else self.body(x) / 0", "nan"),
        ("return self.body(x)", "return self.body(x) if self.training else self.body(x)[:, :1]", "output"),
        ("return self.body(x)", "\n        while True: pass", "timeout"),
        (
            "return self.body(x)",
            "return self.body(x) + (x.new_zeros(1 << 36) if self.training else 0)",
            "out-of-memory",
        ),
        ("return self.body(x)", "raise ValueError('not today')", "invalid"),
    ],
)
def test_what_goes_wrong_has_a_reason(sandbox: Sandbox, images: Images, old: str, new: str, reason: str) -> None:
    hurried = replace(TRAINING, seconds=3 if reason == "timeout" else 60)
    found = judge(sandbox, SOURCE.replace(old, new), images, hurried, seed=0)
    assert (found.accuracy, found.reason) == (None, reason) and found.said


def test_labels_of_other_images_are_not_there(sandbox: Sandbox, images: Images) -> None:
    """A candidate says which files it finds: none that it could score itself by."""
    spy = "\n        import pathlib\n        raise ValueError(sorted(one.name for one in pathlib.Path('.').iterdir()))"
    found = judge(sandbox, SOURCE.replace("return self.body(x)", spy), images, TRAINING, seed=0)
    for name in ("train_images.npy", "train_labels.npy", "validation_images.npy"):
        assert name in found.said
    assert "validation_labels" not in found.said and "test" not in found.said


def test_the_best_is_kept_with_its_weights(sandbox: Sandbox, images: Images) -> None:
    test = images.test.open()
    kept = judge_best(sandbox, SOURCE, images, test, TRAINING, seed=0)
    assert kept.validation == judge(sandbox, SOURCE, images, TRAINING, seed=0).accuracy
    names: dict[str, object] = {}
    exec(SOURCE, names)  # this test wrote it
    net = names["Net"]((32, 1, 8, 8), (2,), kept.prm, torch.device("cpu"))  # pyright: ignore[reportCallIssue]
    net.load_state_dict(dict(kept.weights))
    assert kept.weights["body.1.num_batches_tracked"].dtype == torch.int64
    assert accuracy(net, test, images) == kept.test and accuracy(net, images.validation, images) == kept.validation


def test_a_network_that_cannot_be_kept_says_why(sandbox: Sandbox, images: Images) -> None:
    growing = SOURCE.replace(
        "return self.body(x)", "self.register_buffer(f'b{x.sum()}', x)\n        return self.body(x)"
    )
    empty = images.validation
    with pytest.raises(TrialFailed):
        judge_best(sandbox, growing, images, empty, TRAINING, seed=0)
    with pytest.raises(TrialFailed, match="nothing"):
        judge_best(
            sandbox,
            "class Net:\n  def __init__(self, *_): raise ValueError('nothing')",
            images,
            empty,
            TRAINING,
            seed=0,
        )
