"""The folder in which a search leaves its best network: `model.safetensors`, `arch.json` and a model card.

Nothing in it is code or a pickle. `arch.json` names the blueprint and the arch, from which the network is built again: by
befit's own blueprints, or by importing the user's own class, which must have `Choice`s for defaults (so that a folder from
elsewhere cannot name just any function).
"""

import functools
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from befit.arch.task import ImageTask
from befit.errors import BefitError, RunConflict
from befit.rundir import befit_version, read_json, read_tensors, replacing_folder, write_json, write_tensors, write_text
from befit.vision.blueprint import Blueprint
from befit.vision.cell import cell
from befit.vision.mobile import mobile
from befit.vision.own import own
from befit.vision.predict import Classifier

WEIGHTS, ARCH, CARD = "model.safetensors", "arch.json", "README.md"
"""The files of the folder."""

PROPOSED = "net.py"
"""The file by which a folder of `befit propose` is known."""

FORMAT = 1
"""Of `arch.json`; changes when an older befit could misread it."""

_KEYS = ("arch", "befit", "blueprint", "classes", "format", "mean", "options", "span", "std", "task")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the model card says beyond what the network is."""

    data: str
    """Where the images came from, as the user named it."""
    images: Mapping[str, int] = field(default_factory=dict)
    """Images of each split, by its name."""
    accuracy: Mapping[str, float] = field(default_factory=dict)
    """0..1, by the name of the split it was measured on."""
    measured: Mapping[str, str] = field(default_factory=dict)
    """Costs with their units that were counted exactly or measured, and where."""
    predicted: Mapping[str, str] = field(default_factory=dict)
    """Costs with their units that are predictions."""
    notes: tuple[str, ...] = ()
    """Anything else: how it was found and trained, what was held out."""


def save_classifier(folder: Path, classifier: Classifier, facts: Facts) -> None:
    """Write the folder whole or not at all; one that is there is replaced. Raises `DiskFull`."""
    written = {
        "format": FORMAT,
        "befit": befit_version(),
        "blueprint": classifier.blueprint,
        "options": dict(classifier.options),
        "arch": classifier.arch.to_json(),
        "task": classifier.task.to_json(),
        "classes": list(classifier.classes),
        "mean": list(classifier.mean),
        "std": list(classifier.std),
        "span": list(classifier.span),
    }
    with replacing_folder(folder) as temporary:
        write_tensors(temporary / WEIGHTS, classifier.module.state_dict())
        write_json(temporary / ARCH, written)
        write_text(temporary / CARD, card(classifier, facts))


def load_classifier(
    folder: Path | str, *, build: Callable[..., nn.Module] | None = None, device: str | torch.device = "cpu"
) -> Classifier:
    """The classifier of a folder, or of the `best/` in it, ready to predict on `device`.

    `build`: the user's own class, where it cannot be imported by the name in `arch.json`. Raises `RunConflict` for a folder
    that holds none, files that do not belong together, or a class that cannot be found.
    """
    place = Path(folder)
    place = place if (place / ARCH).exists() else place / "best"
    if not (place / ARCH).exists():
        if any(next(Path(folder).glob(f"{inner}{PROPOSED}"), None) for inner in ("", "best/", "*/", "best/*/")):
            raise RunConflict(
                f"{folder} holds a network that a model wrote ({PROPOSED}), which befit runs in its sandbox only; the README.md "
                "beside it says how to use it"
            )
        raise RunConflict(
            f"{folder} holds no network that befit search made ({ARCH} is missing); give its best/ folder"
        )
    told = _told(place / ARCH)
    blueprint = blueprint_of(told["blueprint"], told["options"], build=build, where=str(place / ARCH))
    try:
        task, arch = ImageTask.from_json(told["task"]), blueprint.space.arch(told["arch"])
        with torch.random.fork_rng(devices=()):
            module = blueprint.build(arch, task)
        module.load_state_dict(_weights(place / WEIGHTS))
        return Classifier(
            module=module.to(device).eval(),
            task=task,
            classes=tuple(told["classes"]),
            mean=tuple(told["mean"]),
            std=tuple(told["std"]),
            span=tuple(told["span"]),
            arch=arch,
            blueprint=told["blueprint"],
            options=told["options"],
        )
    except (BefitError, RuntimeError, TypeError) as error:
        if isinstance(error, RunConflict):
            raise
        raise RunConflict(
            f"{place}: {ARCH}, {WEIGHTS} and the class {told['blueprint']} do not belong together ({_short(error)}); "
            "copy the whole folder again, or use the version of the class that was searched"
        ) from error


def blueprint_of(
    name: str, options: Mapping[str, Any], *, build: Callable[..., nn.Module] | None = None, where: str = ARCH
) -> Blueprint:
    """The blueprint of this name: `cell`, `mobile`, or `module:Class` to import (not if `build` is given).

    Raises `RunConflict` if there is none.
    """
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        if name == "cell":
            return cell(**given)
        if name == "mobile":
            return mobile(**given)
        return own(build or _imported(name, where))
    except (BefitError, TypeError, ValueError) as error:
        if isinstance(error, RunConflict):
            raise
        raise RunConflict(f"{where}: no blueprint can be made of {name!r} with {given} ({error})") from error


def import_path(build: Callable[..., nn.Module]) -> str:
    """`module:Class`, by which `load_classifier` finds the user's own class again."""
    return f"{build.__module__}:{build.__qualname__}"


def card(classifier: Classifier, facts: Facts) -> str:
    """The model card, in Markdown."""
    task = classifier.task
    colour = {1: "grey", 3: "colour"}.get(task.channels, f"{task.channels}-channel")
    lines = [
        "---",
        "library_name: befit",
        "pipeline_tag: image-classification",
        "---",
        "",
        f"# A network for {task.classes} classes of images",
        "",
        f"It takes {colour} images of {task.width}x{task.height} pixels and tells apart {_listed(classifier.classes)}. "
        f"Its architecture was found by `befit search` (befit {befit_version()}) in the space `{classifier.blueprint}`.",
        "",
        *_table("Accuracy", ("split", "accuracy"), {k: f"{v:.2%}" for k, v in facts.accuracy.items()}),
        *_table("Costs, measured or counted", ("cost", "value"), facts.measured),
        *_table("Costs, predicted (not measured)", ("cost", "value"), facts.predicted),
        "## Data",
        "",
        f"`{facts.data}`" + "".join(f"; {count:,} {name} images" for name, count in facts.images.items()),
        "",
        *(f"- {note}" for note in facts.notes),
        *([""] if facts.notes else []),
        "## Use",
        "",
        "```python",
        "import befit",
        "",
        'print(befit.load("this/folder").predict("photo.jpg"))',
        "```",
        "",
        *_loading(classifier),
        "## Architecture",
        "",
        "```json",
        json.dumps(classifier.arch.to_json(), indent=1),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _told(file: Path) -> dict[str, Any]:
    try:
        told = read_json(file)
    except (OSError, ValueError) as error:
        raise RunConflict(f"{file} cannot be read ({error}); copy the folder again") from error
    if not isinstance(told, dict) or sorted(told) != sorted(_KEYS) or told["format"] != FORMAT:
        version = told.get("befit", "unknown") if isinstance(told, dict) else "unknown"
        raise RunConflict(
            f"{file} is not as this befit ({befit_version()}) writes it, but as befit {version}; use that version"
        )
    return told


def _weights(file: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(file)
    except (OSError, SafetensorError) as error:
        raise RunConflict(f"{file} cannot be read ({error}); copy the folder again") from error


def _imported(name: str, where: str) -> Callable[..., nn.Module]:
    module, _, path = name.partition(":")
    try:
        # Each part of the name is looked up in what the part before it was.
        return functools.reduce(lambda held, part: vars(held)[part], path.split("."), importlib.import_module(module))  # type: ignore[return-value]
    except (ImportError, KeyError, TypeError, ValueError) as error:
        raise RunConflict(
            f"{where}: the network's class {name!r} cannot be imported ({type(error).__name__}: {error}); "
            "put its module on the Python path, or pass the class: load_classifier(folder, build=YourClass)"
        ) from error


def _short(error: Exception) -> str:
    """Two lines of a message as one: PyTorch names every tensor that does not fit."""
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"*{name}*" for name in names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def _table(title: str, head: tuple[str, str], rows: Mapping[str, str]) -> list[str]:
    if not rows:
        return []
    return [
        f"## {title}",
        "",
        f"| {head[0]} | {head[1]} |",
        "|---|---:|",
        *(f"| {k} | {v} |" for k, v in rows.items()),
        "",
    ]


def _loading(classifier: Classifier) -> list[str]:
    if ":" not in classifier.blueprint:
        return []
    return [
        f"The network's class is `{classifier.blueprint}`, which must be importable; "
        "otherwise pass it: `befit.vision.checkpoint.load_classifier(folder, build=YourClass)`.",
        "",
    ]
