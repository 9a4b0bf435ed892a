"""Everything one run of `befit search` is asked to do. The run directory keeps it as JSON; `resume` reads it back."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from befit.errors import BadData
from befit.rundir import rebuilt
from befit.vision.training import TrainConfig

SAMPLED = ("predictor", "evolution", "random", "local", "reinforce", "nsga2", "nsga3", "tpe", "gp")
"""Searchers that train one network a trial; samplers of an Optuna study."""

GRADIENT = ("darts", "darts2", "drnas", "gdas")
"""Searchers that learn the architecture by gradients, in one training."""

SHARED = "once-for-all"
"""Trains shared weights once; any budget is then cut out of them."""

SEARCHERS = (*SAMPLED, *GRADIENT, SHARED)


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Search an image classifier for your data that keeps a budget."""

    data: str | None = None
    """Folder of class folders, parquet file or folder, hub name; none takes the embedded 8 x 8 digits."""
    space: str = "cell"
    """`cell` (NAS-Bench-201's), `mobile` (inverted residuals), or your own class with Choices as "module:Class"."""
    space_options: str = ""
    """Settings of the space, such as "channels=16,cells=5"; none fits them to the images."""
    searcher: Literal[
        "evolution",
        "random",
        "local",
        "reinforce",
        "predictor",
        "nsga2",
        "nsga3",
        "tpe",
        "gp",
        "darts",
        "darts2",
        "drnas",
        "gdas",
        "once-for-all",
    ] = "predictor"
    """How to look: one training for each trial, by gradients, or with weights shared by all."""
    searcher_options: str = ""
    """Settings of the searcher, such as "population=20,sample=5"."""
    budget: str | None = None
    """Bounds on params, macs, memory and latency, such as "latency=4ms, params<=3M". Nothing beyond is ever trained."""
    out: Path = Path("runs/search")
    """Run directory."""
    trials: int = 24
    """Networks to try; with shared weights, sub-nets to judge."""
    objectives: str = "accuracy"
    """accuracy, and what else is to be good: "accuracy, latency, params"."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=8))
    """Of every trial; with gradients or shared weights, of the one network that holds all."""
    side: int | None = None
    """Pixels to which trials see their images reduced."""
    share: float = 1.0
    """Part of the training images that trials see, 0 to 1."""
    halving: int | None = None
    """Successive halving: epochs after which only the best third of trials goes on; then three times as many, and so on."""
    screen: int = 1
    """Candidates for each trial, of which the one with the best training-free score is trained."""
    proxy: Literal["nwot", "synflow", "jacov", "snip", "grad_norm"] = "nwot"
    """The training-free score of `--screen` and `--proxy-features`."""
    proxy_features: bool = False
    """Let the predictor learn from the training-free score, too; it always sees parameters, multiply-adds and memory."""
    timeout: float | None = None
    """Seconds after which a trial fails."""
    top: int = 3
    """Finalists: how many of the best are trained fully."""
    final: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=30))
    """Of the finalists. With shared weights they are used as they are, unless `tune` says otherwise."""
    tune: bool = False
    """Train also what was cut out of shared weights."""
    then: str | None = None
    """A second dataset, on which the finalists and some more are trained too: does what was found transfer?"""
    size: int | None = None
    """Pixels to which images are scaled and cropped when they are read; none leaves them, or takes 224 where sizes differ."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train, and to measure."""
    engine: Literal["torch", "onnx"] = "torch"
    """What runs the network when its latency is measured."""
    threads: int = 1
    """Of a CPU, when latency is measured, and of each worker."""
    latency_table: Path | None = None
    """Latencies of another device, as `befit measure --space cell` wrote them there; none measures here."""
    storage: str | None = None
    """Database of the study, such as postgresql://…, to share it between machines; none is a file in the run."""
    study: str = "search"
    """Name of the study in the storage."""
    workers: int = 1
    """Local processes that train; 0 trains in this one."""
    ray: str | None = None
    """Address of a Ray cluster whose machines train instead."""
    seed: int = 0
    """Of the search, the splits and all training."""

    def __post_init__(self) -> None:
        for name, least in (("trials", 1), ("top", 1), ("screen", 1), ("threads", 1), ("workers", 0)):
            if (told := getattr(self, name)) < least:
                raise BadData(f"{name} must be at least {least}, got {told}")
        if not 0 < self.share <= 1:
            raise BadData(f"share must be above 0 and at most 1, got {self.share}")
        if self.searcher not in SEARCHERS:
            raise BadData(f"searcher must be one of {', '.join(SEARCHERS)}, got {self.searcher!r}")
        if self.searcher not in SAMPLED and (self.halving or self.screen > 1 or self.ray or self.storage):
            raise BadData(f"halving, screen, ray and storage belong to a study of trials; {self.searcher} has none")

    def to_json(self) -> dict[str, Any]:
        """Plain values, for config.json; `verb` tells the run from those of other verbs."""
        told = {"verb": "search", **dataclasses.asdict(self)}
        return json.loads(json.dumps(told, default=str))  # lists for tuples and texts for paths, as a file gives them

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "SearchConfig":
        """Read what `to_json` wrote. Raises `RunConflict` for a key this version does not know."""
        return rebuilt(SearchConfig, {name: value for name, value in data.items() if name != "verb"})


def parse_options(text: str, where: str) -> dict[str, Any]:
    """Read "population=20, names=(1,2)" style settings: values are JSON, or texts. Raises `BadData`."""
    found = dict[str, Any]()
    for part in filter(None, (piece.strip() for piece in _pieces(text))):
        name, sign, value = part.partition("=")
        if not sign or not name.strip().isidentifier():
            raise BadData(f"{where}: expected name=value, separated by commas, got {part!r}")
        try:
            read = json.loads(value)
        except ValueError:
            read = value.strip()
        found[name.strip()] = tuple(read) if isinstance(read, list) else read
    return found


def _pieces(text: str) -> list[str]:
    """Split at commas outside of brackets."""
    pieces, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += sign
    return pieces
