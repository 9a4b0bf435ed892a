"""Estimators: what they measure, at what fidelity, and that they travel to workers."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.search.toys import spec

from befit.errors import BadData, TrialFailed
from befit.search.estimate import Proxy, Tabled, Training, limited, reduced
from befit.search.pool import Crew
from befit.search.pricing import Pricer
from befit.search.study import run_study
from befit.search.trial import Fidelity
from befit.vision.cell import cell
from befit.vision.data import Images, from_arrays
from befit.vision.proxies import proxies
from befit.vision.training import TrainConfig, accuracy, train

CELL = cell(channels=4, cells=1)
ARCH = CELL.space.arch(dict.fromkeys(CELL.space.choices, "nor_conv_3x3"))


@pytest.fixture(scope="module")
def images() -> Images:
    """Two classes, told apart by which half is bright."""
    labels = torch.arange(120) % 2
    pixels = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 100
    pixels[labels == 1, :, :4] += 100
    pixels[labels == 0, :, 4:] += 100
    return from_arrays(pixels.to(torch.uint8), labels)


def on(epoch: int, value: float) -> None:
    del epoch, value


def test_training_is_that_of_the_network_alone_and_repeats(images: Images) -> None:
    config = TrainConfig(epochs=2)
    seen = list[tuple[int, float]]()
    evaluate = pickle.loads(pickle.dumps(Training(blueprint=CELL, data=images, config=config, seed=3)))
    found = evaluate(ARCH, Fidelity(), lambda epoch, value: seen.append((epoch, value)))
    torch.manual_seed(3)
    network = CELL.build(ARCH, images.task)
    alone = train(network, images, config, seed=3)
    assert found.value == alone.accuracy == accuracy(network, images.validation, images) > 0.5
    assert [round(value, 5) for _, value in seen] == [row[2] for row in found.details["history"]] and found.epochs == 2
    assert evaluate(ARCH, Fidelity(), on).value == found.value


def test_fidelities_reduce_training_only(images: Images) -> None:
    small = reduced(images, Fidelity(image_side=4, data_share=0.5), seed=1)
    assert small.task.height == small.task.width == 4 and len(small.train) == len(images.train) // 2
    assert len(small.validation) == len(images.validation)
    assert reduced(images, Fidelity()) is images
    config = TrainConfig(epochs=7)
    assert limited(config, Fidelity()) == config
    assert limited(config, Fidelity(epochs=2)).epochs == 2 and limited(config, Fidelity(epochs=0.2)).epochs == 1
    assert limited(config, Fidelity(seconds=1.5)).seconds == 1.5
    refused: list[dict[str, Any]] = [{"epochs": 0}, {"seconds": -1}, {"data_share": 1.1}, {"epochs": 1, "seconds": 1}]
    for wrong in refused:
        with pytest.raises(BadData, match="fidelity"):
            Fidelity(**wrong)


def test_a_proxy_is_the_score_of_untrained_weights(images: Images) -> None:
    evaluate = pickle.loads(pickle.dumps(Proxy(blueprint=CELL, data=images, name="synflow", images=16)))
    found = evaluate(ARCH, Fidelity(), on)
    batch = images.train.take(torch.arange(16))
    torch.manual_seed(0)
    network = CELL.build(ARCH, images.task)
    assert found.value == proxies(network, images.normalised(batch.images), batch.labels, ("synflow",))["synflow"]
    with pytest.raises(BadData, match="proxy: expected one of"):
        Proxy(blueprint=CELL, data=images, name="luck")


def test_a_table_is_looked_up() -> None:
    evaluate = Tabled(values={ARCH: 0.7})
    assert evaluate(ARCH, Fidelity(), on).value == 0.7
    other = next(arch for arch in CELL.space.enumerate() if arch != ARCH)
    with pytest.raises(TrialFailed, match="does not hold") as error:
        evaluate(other, Fidelity(), on)
    assert error.value.reason == "invalid"


def test_a_study_of_real_networks_in_a_worker(tmp_path: Path, images: Images) -> None:
    told = spec(tmp_path, trials=2, fidelity=Fidelity(epochs=1), objectives=("accuracy", "macs"))
    found = run_study(
        told,
        CELL.space,
        Training(blueprint=CELL, data=images),
        pricer=Pricer(blueprint=CELL, task=images.task),
        crew=Crew(workers=1),
    )
    assert [one.state for one in found] == ["scored"] * 2
    assert all(one.values == (one.value, one.counted["macs"]) and one.epochs == 1 for one in found)
