"""A trained supernet on disk, out of which networks for other budgets are taken without training.

    write_supernet(folder, supernet, data, source="mobile", options={…})
    ...
    found = cut(open_supernet(folder), data, allowed=lambda arch: price(arch) <= limit)
    save_classifier(out, found.classifier, facts)

The folder holds `supernet.safetensors` and `supernet.json`: how the blueprint was made, the task, the classes, and how images
were normalised. The images themselves are not in it; judging sub-nets and estimating their statistics takes those they were
trained on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from befit.arch.space import Arch
from befit.arch.task import ImageTask
from befit.errors import BadData, BefitError, RunConflict
from befit.oneshot.evolve import EvolveConfig, Evolved, Judge, JudgeConfig, evolve
from befit.oneshot.nested import NestedSupernet
from befit.oneshot.shared_cell import CellSupernet
from befit.oneshot.supernet import Supernet
from befit.progress import Progress, silent
from befit.rundir import befit_version, read_json, read_tensors, replacing_folder, write_json, write_tensors
from befit.vision.blueprint import Blueprint
from befit.vision.checkpoint import blueprint_of
from befit.vision.data import Images
from befit.vision.predict import Classifier

WEIGHTS, ABOUT = "supernet.safetensors", "supernet.json"
"""The files of the folder."""

FORMAT = 1
"""Of `supernet.json`; changes when an older befit could misread it."""

_KEYS = ("befit", "classes", "format", "mean", "options", "source", "std", "task", "training")


def supernet_of(blueprint: Blueprint, task: ImageTask, options: Mapping[str, Any], *, seed: int = 0) -> Supernet:
    """Shared weights, fresh, for a blueprint that was made with these options; torch's global generators stay as they are.

    Cells share by operation, everything else by prefixes. Raises `UnsupportedModel` or `IllegalArch` as `NestedSupernet`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if blueprint.name == "cell":
            return CellSupernet(task, **options)
        return NestedSupernet(blueprint, task)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A supernet with all that is needed to use it."""

    supernet: Supernet
    source: str
    """Its blueprint: `cell`, `mobile`, or `module:Class`."""
    options: Mapping[str, Any]
    """What the blueprint was made with."""
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    """Of each channel, by which images were normalised."""
    std: tuple[float, ...]
    training: Mapping[str, Any]
    """Whatever was told of its training: plain values."""


def write_supernet(
    folder: Path,
    supernet: Supernet,
    data: Images,
    *,
    source: str,
    options: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder whole or not at all; one that is there is replaced. Raises `DiskFull`."""
    about = {
        "format": FORMAT,
        "befit": befit_version(),
        "source": source,
        "options": dict(options),
        "task": supernet.task.to_json(),
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "training": dict(training or {}),
    }
    with replacing_folder(folder) as temporary:
        write_tensors(temporary / WEIGHTS, {name: tensor.clone() for name, tensor in supernet.state_dict().items()})
        write_json(temporary / ABOUT, about)


def open_supernet(
    folder: Path, *, build: Callable[..., nn.Module] | None = None, device: str | torch.device = "cpu"
) -> Stored:
    """Read what `write_supernet` wrote. `build`: the user's own class, where it cannot be imported by name.

    Raises `RunConflict` for a folder that holds no supernet, or files that do not belong together.
    """
    about = _about(folder)
    blueprint = blueprint_of(about["source"], about["options"], build=build, where=str(folder / ABOUT))
    try:
        options = {name: tuple(one) if isinstance(one, list) else one for name, one in about["options"].items()}
        supernet = supernet_of(blueprint, ImageTask.from_json(about["task"]), options)
        supernet.load_state_dict(read_tensors(folder / WEIGHTS))
    except (BefitError, OSError, SafetensorError, RuntimeError, TypeError) as error:
        raise RunConflict(
            f"{folder}: {ABOUT}, {WEIGHTS} and the space {about['source']} do not belong together ({error}); "
            "copy the whole folder again, or train the supernet anew"
        ) from error
    return Stored(
        supernet=supernet.to(device).eval(),
        source=about["source"],
        options=options,
        classes=tuple(about["classes"]),
        mean=tuple(about["mean"]),
        std=tuple(about["std"]),
        training=about["training"],
    )


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A sub-net that was taken out."""

    classifier: Classifier
    """Ready to predict, and to be saved."""
    evolved: Evolved
    """The search that found it, with its accuracy on validation images."""


def cut(
    stored: Stored,
    data: Images,
    *,
    allowed: Callable[[Arch], bool] | None = None,
    config: EvolveConfig | None = None,
    judging: JudgeConfig | None = None,
    progress: Progress = silent,
) -> Cut:
    """Search the supernet for the best sub-net that is `allowed`, estimate its statistics and take it out.

    Raises `Infeasible` if nothing is allowed, `BadData` for images of another kind than the supernet was trained on.
    """
    if data.task != stored.supernet.task or data.classes != stored.classes:
        raise BadData(
            f"cut: the supernet was trained for {stored.supernet.task.to_json()} and the classes "
            f"{', '.join(stored.classes[:10])}; got {data.task.to_json()} with {', '.join(data.classes[:10])}; "
            "give the images it was trained on"
        )
    judge = Judge(stored.supernet, data, judging)
    evolved = evolve(stored.supernet, judge, config or EvolveConfig(), allowed=allowed, progress=progress)
    module = judge.network(evolved.arch).cpu()
    classifier = Classifier.of(module, data, evolved.arch, blueprint=stored.source, options=stored.options)
    return Cut(classifier=classifier, evolved=evolved)


def _about(folder: Path) -> dict[str, Any]:
    try:
        about = read_json(folder / ABOUT)
    except (OSError, ValueError) as error:
        raise RunConflict(
            f"{folder} holds no shared weights that can be read ({error}); give the supernet folder of a run"
        ) from error
    if not isinstance(about, dict) or sorted(about) != sorted(_KEYS) or about["format"] != FORMAT:
        version = about.get("befit", "unknown") if isinstance(about, dict) else "unknown"
        raise RunConflict(
            f"{folder / ABOUT} is not as this befit ({befit_version()}) writes it, but as befit {version}; "
            "use that version"
        )
    return about
