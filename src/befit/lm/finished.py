"""What a run has left to be compared: its parent, its child and its baselines, or its parent and its cuts.

A run of `befit puzzle` keeps the child as a checkpoint, and the baselines as healed weights, which `healed.json` says the place
of. A run of `befit elastic` keeps checkpoints under `cuts/`. Tasks that were put to a run's models are kept in its `eval.json`,
with a key of the models: when the child becomes another, they are no longer shown.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from befit.arch.decoder import DecoderArch
from befit.errors import RunConflict
from befit.lm.child import adopt, build, config_for
from befit.lm.contender import PARENT, Contender, Place, checkpoint, tokenizer
from befit.lm.parent import find, read_config
from befit.rundir import digest, read_json, read_tensors, write_json

EVALUATION, HEALED = "eval.json", "healed.json"
"""Files of a run: results of tasks; where each model's healed weights lie."""


def is_run(folder: Path) -> bool:
    """Whether a folder is a run on a language model, and not a checkpoint."""
    told = _config(folder)
    return "budget" in told or "budgets" in told


def parent_of(folder: Path) -> str | None:
    """The parent of the run that a checkpoint lies in, as `find` understands it; None outside of runs."""
    for place in (folder.resolve(), *folder.resolve().parents[:3]):
        if is_run(place):
            return _config(place).get("parent") or "befit:dense"
    return None


def contenders(run: Path, place: Place) -> list[Contender]:
    """A run's parent and what was made of it. Raises `RunConflict` for a run that is not finished or has no cuts."""
    parent = parent_of(run)
    assert parent is not None
    found = [checkpoint(parent, place, name=PARENT)]
    if "budgets" in _config(run):
        cuts = sorted(path.parent for path in run.glob("cuts/*/config.json"))
        if not cuts:
            raise RunConflict(f'{run} has no cuts yet; make one: befit cut {run} --budget "50%"')
        return found + [checkpoint(str(cut), place, name=cut.name) for cut in cuts]
    summary = _summary(run)
    found.append(checkpoint(str(run / "child"), place, name="child"))
    where = read_json(run / HEALED) if (run / HEALED).is_file() else {}
    for name, told in summary.get("baselines", {}).items():
        if name in where:
            found.append(_rival(name, run / where[name], parent, DecoderArch.from_json(told["arch"]), place))
    return found


def note_healed(run: Path, name: str, folder: Path) -> None:
    """Remember in which of the run's folders a model's healed weights lie."""
    told = read_json(run / HEALED) if (run / HEALED).is_file() else {}
    write_json(run / HEALED, told | {name: str(folder.relative_to(run))})


def keep(run: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """Write what was found into the run's `eval.json`, beside other tasks of the same models; returns all of them."""
    key, tasks, notes = models_key(_summary(run)), dict[str, Any](), list[str]()
    if (run / EVALUATION).is_file():
        old = read_json(run / EVALUATION)
        if old.get("of") == key and old["models"] == found["models"]:
            tasks, notes = old["tasks"], old["notes"]
    told = {**found, "of": key, "tasks": tasks | found["tasks"]}
    told["notes"] = list(dict.fromkeys([*notes, *found["notes"]]))
    write_json(run / EVALUATION, told)
    return told


def with_evaluation(summary: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """A run's summary with the results of tasks in it, if there are some of these very models."""
    if not (run / EVALUATION).is_file():
        return dict(summary)
    told = read_json(run / EVALUATION)
    if told.get("of") == models_key(summary):
        return {**summary, "evaluation": told}
    note = f"Tasks were put to models that this run no longer has; put them again: befit eval {run}"
    return {**summary, "notes": [*summary.get("notes", ()), note]}


def models_key(summary: Mapping[str, Any]) -> str:
    """A name for the models of a run, from what is known of each."""
    told = {"child": summary.get("child"), "members": summary.get("members"), **(summary.get("baselines") or {})}
    return digest({name: _known(model) for name, model in told.items()})


def _known(model: Any) -> Any:
    """Architecture, loss and KL: two models that agree in all are one."""
    if isinstance(model, list):
        return [_known(one) for one in model]
    return {key: model.get(key) for key in ("arch", "member", "loss", "kl")} if isinstance(model, dict) else model


def _rival(name: str, folder: Path, parent: str, arch: DecoderArch, place: Place) -> Contender:
    """A baseline from the healed weights in a stage's folder."""

    def open_rival() -> Any:
        home = find(parent)
        model = build(config_for(read_config(home), arch), dtype=place.dtype)
        adopt(model, {n: t.to(place.dtype) for n, t in read_tensors(folder / "healed.safetensors").items()})
        return model, tokenizer(home)

    return Contender(name=name, source=str(folder), open=open_rival)


def _config(folder: Path) -> dict[str, Any]:
    """What config.json says; nothing where there is none."""
    try:
        told = read_json(folder / "config.json")
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _summary(run: Path) -> dict[str, Any]:
    if not (run / "summary.json").is_file():
        raise RunConflict(f"{run} has no summary.json; finish the run first: befit resume {run}")
    return read_json(run / "summary.json")
