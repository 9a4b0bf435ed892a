"""A search in one call, over a network and data of one's own.

    found = befit.find(Net, loader, budget="params<=20k", trials=12)
    found.best.predict(image)

`Net` is any class or function that makes a `torch.nn.Module` and has `befit.Choice`s among its defaults; the data is a
`DataLoader` or a pair of arrays.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from befit.progress import Bars
from befit.search.config import SearchConfig
from befit.search.finish import BEST
from befit.search.pipeline import search
from befit.vision.checkpoint import import_path, load_classifier
from befit.vision.data import Images, from_arrays, from_loader
from befit.vision.predict import Classifier
from befit.vision.training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search left."""

    arch: Mapping[str, Any]
    """The options taken, by the names of the parameters."""
    validation: float
    """Accuracy 0..1 on the images it was chosen by."""
    test: float
    """Accuracy 0..1 on images that nothing was chosen by."""
    costs: Mapping[str, float]
    """params, macs, memory_bytes, and latency_ms if it was measured."""
    folder: Path
    """The run: `best/`, `report.html`, `summary.json`."""
    build: Callable[..., nn.Module]
    """The class that was searched."""

    @cached_property
    def best(self) -> Classifier:
        """The trained network, ready to predict."""
        return load_classifier(self.folder / BEST, build=self.build)


def find(
    build: Callable[..., nn.Module],
    data: Iterable[Any] | tuple[Any, Any] | Images,
    *,
    epochs: int = 8,
    out: str | Path = "runs/search",
    **settings: Any,
) -> Found:
    """Search `build`'s choices on `data` (a loader of image and label batches, or images and labels) for `epochs` a trial.

    `settings` are those of `befit.search.config.SearchConfig`: budget, searcher, trials, top, seed, … Trials run in this
    process unless `workers` says otherwise. The same call goes on where it was stopped, and reads what is finished.
    """
    images = data if isinstance(data, Images) else from_arrays(*data) if isinstance(data, tuple) else from_loader(data)
    config = SearchConfig(
        **{"workers": 0, "train": TrainConfig(epochs=epochs), "final": TrainConfig(epochs=3 * epochs), **settings},
        space=import_path(build),
        out=Path(out),
    )
    with Bars() as progress:
        summary = search(config, progress=progress, data=images, build=build)
    best = next(one for one in summary["finalists"] if one["chosen"])
    return Found(
        arch=best["arch"],
        validation=best["validation"],
        test=best["test"],
        costs={**best["counted"], **best["measured"]},
        folder=config.out,
        build=build,
    )
